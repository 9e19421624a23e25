"""A TunedModule in several processes is refused before anything is trained."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from graftwork.errors import UnsupportedError
from graftwork.integrations import DeltaCallback, TunedModule
from graftwork.tuning import LoRA
from tests.integrations.toys import make_base, make_trainer

MESSAGE = "a TunedModule trains in one process on one device, not {} processes with {} GPUs"


def training(folder: Path) -> None:
    """Begin a training, as each of several processes would; say how it was refused."""
    tuned = TunedModule(make_base(), LoRA(rank=2), ["encoder.*.weight"], heads=["classifier"])
    before = [p.detach().clone() for p in tuned.trained()]
    trainer = make_trainer(tuned, tuned, folder, [DeltaCallback(tuned, folder / "delta")])
    try:
        trainer.train()
    except UnsupportedError as cause:
        same = all(bool((a == b).all()) for a, b in zip(before, tuned.trained(), strict=True))
        print(f"REFUSED {same} {(folder / 'delta').exists()} {cause}")


@pytest.mark.parametrize(("processes", "gpus"), [(2, 0), (2, 1), (1, 2)])
def test_several_processes_or_gpus_are_refused(processes, gpus, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as faked:
        tuned = TunedModule(make_base(), LoRA(rank=2), ["encoder.*.weight"], heads=["classifier"])
        callback = DeltaCallback(tuned)
        trainer = make_trainer(tuned, tuned, tmp_path, [callback])
        faked.setattr(TrainingArguments, "world_size", property(lambda _: processes))
        faked.setattr(TrainingArguments, "n_gpu", property(lambda _: gpus))
        with pytest.raises(UnsupportedError) as caught:
            callback.on_train_begin(
                trainer.args,
                trainer.state,
                trainer.control,
                model=trainer.model,
                optimizer=trainer.optimizer,
                lr_scheduler=None,
            )
    assert MESSAGE.format(processes, gpus) in str(caught.value)
    assert "use `torchrun -m graftwork adapt`" in str(caught.value)


@pytest.mark.slow
def test_two_real_processes_are_refused(tmp_path):
    """Over gloo, as torchrun starts them."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    root = Path(__file__).parents[2]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __spec__.name, str(tmp_path / str(rank))],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    for process in processes:
        printed, failed = process.communicate(timeout=240)
        assert process.returncode == 0, failed[-2000:]
        # nothing was trained, nothing was written
        assert f"REFUSED True False {MESSAGE.format(2, 0)[:60]}" in printed, (
            printed + failed[-2000:]
        )


if __name__ == "__main__":
    training(Path(sys.argv[1]))
