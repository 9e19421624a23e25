"""Run folders: what they hold, what they refuse, what they say."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork._errors import (
    ConfigError,
    FingerprintError,
    MissingDependencyError,
    StorageError,
    TrainingError,
)
from graftwork.bases import load as load_base
from graftwork.deltas import content_hash, load
from graftwork.tasks import Task
from graftwork.training import (
    History,
    LogConfig,
    RunConfig,
    RunFolder,
    TensorBoard,
    TrainConfig,
    adapt,
    from_yaml,
    progress,
    read_records,
)
from graftwork.training._checkpoint import Checkpoints
from graftwork.training._files import new_folder, write_text
from graftwork.tuning import DiffPruning, RandomMask
from tests.training.toys import Net, make_base, make_toy_task

QUIET = LogConfig(progress="silent")


def config_for(out: Path, **more: Any) -> RunConfig:
    given: dict[str, Any] = {
        "base": "toy",
        "tuner": RandomMask(share=0.3),
        "train": TrainConfig(steps=12, save_every=4, eval_every=6, log_every=1),
        "log": QUIET,
    }
    return RunConfig(**{**given, "out": str(out), **more})


def perform(config: RunConfig, task: Task | None = None, *, resume: bool = False):
    base = make_base()
    return adapt(config, base=base, task=task or make_toy_task(base, group="side"), resume=resume)


def failing(task: Task, after: int) -> Task:
    """The task, whose loss becomes NaN."""
    calls = [0]
    objective = task.objectives["task"]

    def broken(model, batch):
        calls[0] += 1
        return objective(model, batch) * (float("nan") if calls[0] > after else 1.0)

    return replace(task, objectives={"task": broken})


def test_folder_of_a_finished_run(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    result = perform(config)
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == [
        ".lock",
        "config.yaml",
        "delta.safetensors",
        "metrics.jsonl",
        "report.html",
        "result.json",
    ]
    assert from_yaml(tmp_path / "run" / "config.yaml") == config
    stored = load(tmp_path / "run" / "delta.safetensors")
    assert content_hash(stored) == content_hash(result.delta)
    told = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert told["metrics"] == result.metrics == stored.provenance["metrics"]
    assert told["outcome"]["bytes"] == (tmp_path / "run" / "delta.safetensors").stat().st_size
    assert told["trained"] == {"values": 115, "head": 78}
    assert told["unreached"] == ["pooler.weight", "pooler.bias"]
    assert {"accuracy", "accuracy/left", "accuracy/right"} <= set(result.metrics)
    rows = [row for row in result.history if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in result.history if "eval/accuracy" in row] == [6, 12, 12]


def test_same_seed_same_bytes_and_no_trace_of_the_place(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        task = make_toy_task(make_base())
        perform(config_for(tmp_path / name / "deep"), task)
        made.append((tmp_path / name / "deep" / "delta.safetensors").read_bytes())
    assert made[0] == made[1]
    provenance = json.dumps(dict(load(tmp_path / "a" / "deep" / "delta.safetensors").provenance))
    assert str(tmp_path) not in provenance
    assert not re.search(r'"(seconds|time|host|out)"', provenance)
    other = perform(config_for(tmp_path / "c", seed=1))
    assert (tmp_path / "c" / "delta.safetensors").read_bytes() != made[0]
    assert other.delta.provenance["seed"] == 1


def test_finished_run_is_not_overwritten_but_returned(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    first = perform(config)
    before = (tmp_path / "run" / "delta.safetensors").stat().st_mtime_ns
    with pytest.raises(StorageError, match=r"holds a finished run; .*--resume"):
        perform(config)
    again = perform(config, resume=True)
    assert again.metrics == first.metrics
    assert (tmp_path / "run" / "delta.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"begun with train\.steps: 12, not 13"):
        perform(replace(config, train=replace(config.train, steps=13)), resume=True)
    shown = replace(config, log=LogConfig(progress="lines"))
    assert perform(shown, resume=True).metrics == first.metrics


def test_nan_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    task = make_toy_task(make_base())
    message = r"step 10: the loss of row.*; the last good checkpoint, of step 8, is kept in"
    with pytest.raises(TrainingError, match=message):
        perform(config, failing(task, after=10))  # the probe is one call
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
    ]
    with pytest.raises(StorageError, match="holds an unfinished run"):
        perform(config)
    resumed = perform(config, make_toy_task(make_base()), resume=True)
    whole = perform(config_for(tmp_path / "whole"), make_toy_task(make_base()))
    assert content_hash(resumed.delta) == content_hash(whole.delta)


def test_values_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    task = make_toy_task(make_base())
    rates = {"fixed mask": {"values": 1e38, "head": 1e38}}
    train = TrainConfig(steps=9, save_every=1, learning_rates=rates)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="checkpoint"):
        perform(config_for(tmp_path / "run", train=train), task)
    for path in (tmp_path / "run").glob("checkpoints/*/state.safetensors"):
        from safetensors.torch import load_file

        tensors = {k: v for k, v in load_file(path).items() if not k.startswith("step/")}
        assert all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())


def test_changed_data_or_base_cannot_go_on(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with pytest.raises(TrainingError):
        perform(config, failing(make_toy_task(make_base()), after=10))
    with pytest.raises(Exception, match="data of stream 'train' changed since"):
        perform(config, make_toy_task(make_base(), rows=88), resume=True)
    torch.manual_seed(12)
    other = load_base(Net())
    with pytest.raises(FingerprintError, match="the base changed since the checkpoint"):
        adapt(config, base=other, task=make_toy_task(other), resume=True)


def test_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with pytest.raises(TrainingError, match="no checkpoint was saved yet"):
        perform(config, failing(make_toy_task(make_base()), after=2))
    assert perform(config).summary["steps"] == 12


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(StorageError, match=r"in use by another run \(process \d"):
        perform(config_for(tmp_path / "run"))
    perform(config_for(tmp_path / "run"))


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="holds files of something else"):
        perform(config_for(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot use"):
        perform(config_for(tmp_path / "file"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("- 1")
    with pytest.raises(StorageError, match="is not the configuration of a run"):
        perform(config_for(tmp_path / "odd"))


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with pytest.raises(TrainingError):
        perform(config, failing(make_toy_task(make_base()), after=10))
    newest = tmp_path / "run" / "checkpoints" / "step-00000008"
    (newest / "state.safetensors").write_bytes(b"{}")
    with pytest.raises(StorageError, match=r"step-00000008 cannot be read .*remove this folder"):
        perform(config, resume=True)
    (newest / "state.json").write_text('{"format": 9}')
    with pytest.raises(StorageError, match="has format 9"):
        perform(config, resume=True)


def test_checkpoints_keep_two_and_copy_only_views(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    whole = torch.arange(6.0)
    tensors = {"a": whole[:3], "b": whole[3:], "c": whole.view(2, 3).t(), "s": torch.tensor(2)}
    for step in (1, 2, 3):
        checkpoints.save(step, tensors, {"place": step})
    assert checkpoints.steps() == [2, 3]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.record["place"] == 3
    for name, tensor in tensors.items():
        assert torch.equal(newest.tensors[name], tensor)
    assert Checkpoints(tmp_path / "c", resume=False).newest() is None
    checkpoints.clear()
    assert not (tmp_path / "c").exists()
    assert checkpoints.newest() is None


def test_half_written_folders_and_files_vanish(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def half() -> None:
        with new_folder(tmp_path / "x") as part:
            (part / "file").write_text("half")
            raise Stop

    with pytest.raises(Stop):
        half()
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "t", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "t", "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert (tmp_path / "t").read_text() == "old"
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / "absent" / "t", "x")


def test_history_drops_what_will_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = History(path)
    for step in (1, 2, 3):
        first.record({"step": step, "loss": 0.5})
    first.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in read_records(path)] == [1, 2, 3]
    second = History(path, upto=2)
    second.record({"step": 3, "loss": 0.25})
    second.close()
    assert [r["loss"] for r in read_records(path)] == [0.5, 0.5, 0.25]
    History(path).close()
    assert read_records(path) == []


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = replace(QUIET, tensorboard=True)
    perform(config_for(tmp_path / "run", log=log))
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "rate/values", "norm/head", "eval/accuracy"} <= set(tags)
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 13))


def test_tensorboard_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'graftwork\[tensorboard\]'"):
        TensorBoard(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(shown, note: str = "") -> None:
    shown.stage("gates", 0, 3)
    for step in range(3):
        shown.tick(1.0 / (step + 1))
    if note:
        shown.record({"step": 3, "stage": "gates", "note": note})
    metrics = {"eval/accuracy": 0.5, "eval/accuracy/left": 0.25}
    shown.record({"step": 3, "stage": "gates", "loss": 0.1, **metrics})
    shown.stage("fixed mask", 1, 2)
    shown.tick(0.25)
    shown.close()


def test_progress_in_lines() -> None:
    stream = io.StringIO()
    show(progress("auto", stream), "left out: x")
    lines = [re.sub(r"took [\d.]+ s", "took T", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "gates: 3 steps",
        "gates: step 3/3, loss 0.3333, took T",
        "left out: x",
        "gates: after step 3, held out: accuracy 0.5",
        "fixed mask: 2 steps, 1 done",
        "fixed mask: step 2/2, loss 0.25, took T",
    ]


def test_progress_in_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    show(progress("auto", stream), "left out: [x]")
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    assert "left out: [x]" in text
    assert re.search(r"gates +━+ 3/3 0:00:00 0:00:00 loss 1 held out: accuracy 0\.5", text)
    assert re.search(r"fixed mask +━+ 2/2", text)


def test_progress_silent() -> None:
    stream = Terminal()
    show(progress("silent", stream), "note")
    assert stream.getvalue() == ""


def test_functions_as_groups_need_a_loop_of_ones_own(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run", tuner=DiffPruning(groups=lambda name: name))
    with pytest.raises(ConfigError, match=r"tuner\.groups: a function"):
        perform(config)
