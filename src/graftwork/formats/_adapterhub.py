"""LoRA folders of AdapterHub's `adapters`: adapter_config.json beside the weights of one name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwork._errors import DeltaFileError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta, Update
from graftwork.formats._foreign import read_config, read_pickled, read_tensors
from graftwork.formats._peft_import import ImportOptions
from graftwork.formats._plain_lora import add_pair, split_pairs
from graftwork.formats._stamp import origin, stamped

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
HEADS = ("head_config.json", "pytorch_model_head.bin", "model_head.safetensors")

_KNOWN = frozenset(
    {
        *("architecture", "attn_matrices", "composition_mode", "dropout", "dtype", "alpha"),
        *("init_weights", "intermediate_lora", "leave_out", "output_lora", "r", "selfattn_lora"),
    }
)
"""Options that are honoured, or that only say where the file's own tensors come from."""


def import_adapterhub(
    folder: str | os.PathLike[str], base: Base, options: ImportOptions | None = None
) -> Delta:
    """Return the delta that a LoRA adapter of AdapterHub is (Poth et al., 2023).

    An adapter of `adapters` before 1.1 whose alpha is not r was trained with the factor 1 by a
    fault of that library; as the library itself does today, it is read with that factor.

    Arguments:
        folder: what `save_adapter` wrote.
        base: the model that the adapter was trained on.
        options: `unpickle` is needed for `pytorch_adapter.bin`, which is a pickle.

    Raises:
        DeltaFileError: a file is missing, damaged or pickled, or a shape misfits.
        UnsupportedError: another architecture than LoRA, gating, or a prediction head.
        UnknownNameError: a tensor belongs to nothing in the base.
    """
    path, options = Path(folder), options or ImportOptions()
    data = read_config(path / CONFIG)
    config, name = _config(data)
    _refuse_head(path)
    weights, tensors = _read(path, options)
    pairs, rest = split_pairs(tensors, f"loras.{name}.")
    if rest:
        raise DeltaFileError(f"tensor {min(rest)!r} is no LoRA factor of the adapter {name!r}")
    chosen = config.get("attn_matrices") or []
    enabled = tuple(letter in chosen for letter in "qkv")
    updates: dict[str, Update] = {}
    for pair in pairs:
        if pair.b.shape[-1] != config["r"]:
            raise DeltaFileError(
                f"{pair.name!r} has rank {pair.b.shape[-1]}, the config says r = {config['r']}"
            )
        add_pair(updates, base, pair, _factor(data, config), enabled, options.stored)
    known = {**origin("adapterhub", weights), "adapter": name}
    return stamped(base, updates, {}, options.signature, known)


def _config(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    config, name = data.get("config"), data.get("name")
    if not isinstance(config, dict) or not isinstance(name, str):
        raise DeltaFileError(f"{CONFIG} has no 'config' or 'name' of an AdapterHub adapter")
    if config.get("architecture") != "lora":
        raise UnsupportedError(
            f"{CONFIG}: architecture is {config.get('architecture')!r}; 'lora' can be imported"
        )
    if config.get("composition_mode", "add") != "add":
        raise UnsupportedError(
            f"{CONFIG}: composition_mode is {config['composition_mode']!r}; 'add' can be imported"
        )
    for option, value in config.items():
        if option not in _KNOWN and value not in (None, False, 0, "", [], {}):
            raise UnsupportedError(f"{CONFIG}: {option!r} is {value!r}, which cannot be honoured")
    for option in ("r", "alpha"):
        if type(config.get(option)) not in (int, float) or config["r"] < 1:
            raise DeltaFileError(f"{CONFIG}: {option} is {config.get(option)!r}, not a number")
    return config, name


def _factor(data: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    library, _, version = str(data.get("version", "")).partition(".")
    digits = [part for part in version.split(".")[:2] if part.isdigit()]
    if library == "adapters" and len(digits) == 2 and tuple(map(int, digits)) < (1, 1):
        return 1.0
    return float(config["alpha"]) / float(config["r"])


def _refuse_head(path: Path) -> None:
    found = [name for name in HEADS if (path / name).exists()]
    if found:
        raise UnsupportedError(
            f"{path} holds a prediction head ({found[0]}), whose layers AdapterHub builds from a "
            "config of its own; move the head's files away to import the adapter alone"
        )


def _read(path: Path, options: ImportOptions) -> tuple[Path, dict[str, Tensor]]:
    if (path / WEIGHTS).exists() or not (path / PICKLED).exists():
        return path / WEIGHTS, read_tensors(path / WEIGHTS)
    if not options.unpickle:
        raise DeltaFileError(
            f"{path} holds its weights as a pickle ({PICKLED}), which is not read unless you say "
            "so for this one import: ImportOptions(unpickle=True), or --unpickle"
        )
    return path / PICKLED, read_pickled(path / PICKLED)
