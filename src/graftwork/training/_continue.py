"""Going on from a delta: an adaptation that begins where another ended."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from graftwork._errors import StorageError
from graftwork.deltas import Delta, build_ports, check, load, place_of
from graftwork.training._adaptation import Adaptation


def continue_from(adaptation: Adaptation, delta: Delta) -> tuple[str, ...]:
    """Begin an adaptation where `delta` left off, before its first step.

    Values are those of the delta, rounded as they were stored; optimiser and schedule start anew.
    A port of the task, such as the head, is taken over where the delta has one of the same kind and
    configuration; another one (other labels) starts anew and is returned.

    Arguments:
        adaptation: fresh from `start`, with the tuner that the delta was made by (or one that
            trains at least its terms).
        delta: of the same base.

    Returns:
        Names of the task's ports that start anew.

    Raises:
        FingerprintError: the delta was made for another base; `rebase` it first.
        UnsupportedError: the tuner's first stage cannot begin so.
        DeltaError: the delta changes what the tuner does not train.
    """
    check(adaptation.base, delta)
    inside = {n: port for n, port in delta.ports.items() if place_of(n, port.kind)}
    adaptation.attachment.start_from(delta.updates, inside)
    anew = []
    built = build_ports(delta)
    for name, module in adaptation.ports.items():
        port, spec = delta.ports.get(name), adaptation.specs[name]
        if port is None or port.kind != spec.kind or not _fits(module, built[name]):
            anew.append(name)
            continue
        module.load_state_dict(built[name].state_dict())
    return tuple(anew)


def load_delta(path: str | Path) -> Delta:
    """Return the delta of a file, or of a run's folder.

    Raises:
        StorageError: there is none.
        DeltaFileError: the file is no delta.
    """
    path = Path(path)
    file = path / "delta.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise StorageError(f"there is no delta at {file}; is the run that makes it finished?")
    return load(file)


def _fits(mine: nn.Module, theirs: nn.Module) -> bool:
    shapes = [{key: t.shape for key, t in m.state_dict().items()} for m in (mine, theirs)]
    return shapes[0] == shapes[1]
