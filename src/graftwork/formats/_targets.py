"""Whether the modules in an adapter's file are the ones that its config targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from graftwork._errors import DeltaFileError, UnknownNameError
from graftwork.bases import Base
from graftwork.formats._peft_config import PeftConfig

ALL_LINEAR = "all-linear"


def check_targets(base: Base, config: PeftConfig, live: Mapping[str, str]) -> None:
    """Check that the config and the file agree on the adapted modules.

    Args:
        base: the base.
        config: of the adapter.
        live: name of each adapted module in the file -> its name in the base.

    Raises:
        DeltaFileError: the file has tensors for a module that the config leaves out, or none for
            one that it targets.
        UnknownNameError: a target is no module of the base.
    """
    if config.targets in (None, ALL_LINEAR):
        return
    for name in live:
        if not config.adapts(name):
            raise DeltaFileError(
                f"the file has tensors for {name!r}, which the config does not target: "
                f"target_modules {_shown(config.targets)}"
            )
    foreign = _renaming(live)
    adaptable = [foreign(n) for n, m in base.model.named_modules() if n and _has_weight(m)]
    absent = [n for n in adaptable if config.adapts(n) and n not in live]
    if absent:
        raise DeltaFileError(
            f"the config targets {absent[0]!r}, but the file has no tensors for it "
            f"({len(absent)} modules are missing): a part of the adapter was lost, or the base is "
            "another one"
        )
    for target in config.targets if isinstance(config.targets, tuple) else ():
        if not any(n == target or n.endswith(f".{target}") for n in live) and config.layers is None:
            raise UnknownNameError("target module", target, {n.rpartition(".")[2] for n in live})


def _renaming(live: Mapping[str, str]) -> Callable[[str], str]:
    """Return what gives a live module the name it has in the file (a task prefix more or less)."""
    for name, ours in live.items():
        if name != ours and name.endswith(f".{ours}"):
            more = name.removesuffix(ours)
            return lambda module: more + module
        if name != ours and ours.endswith(f".{name}"):
            less = ours.removesuffix(name)
            return lambda module: module.removeprefix(less)
    return lambda module: module


def _has_weight(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) or type(module).__name__ == "Conv1D"


def _shown(targets: object) -> str:
    text = repr(targets)
    return text if len(text) < 120 else f"{text[:117]}..."
