"""Write a module of `graftwork.models` as a folder that `load` reads."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from graftwork._errors import BaseError, StorageError, UnknownNameError
from graftwork.bases._own import FORMAT, MARK, Own
from graftwork.models import MODELS, ModelConfig

_POOLINGS = ("mean", "cls", "max", "last", "none")


def save(
    module: nn.Module,
    folder: str | Path,
    *,
    config: ModelConfig,
    tokenizer: Any = None,
    pooling: str | None = None,
    max_length: int | None = None,
) -> int:
    """Write `module` so that `load(folder)` gives it back as a base, and return the bytes written.

    The folder holds config.json, model.safetensors and, with a tokenizer, its files. It appears
    whole or not at all, and the same module gives the same bytes.

    Args:
        module: what `config.build()` made, trained; heads of pretraining are kept in the file, and
            a base is loaded without them.
        folder: must not exist, or be empty.
        config: what rebuilds the module; its class is one of `graftwork.models.MODELS`.
        tokenizer: a fast transformers tokenizer; None for modules that read no text.
        pooling: how positions become one vector, where the pretraining says so.
        max_length: longest input in tokens.

    Raises:
        UnknownNameError: no such pooling.
        BaseError: the module's tensors are not those of the config, or the config is of no model.
        StorageError: the folder is occupied, or the disk is full; nothing half-written remains.
    """
    names = [name for name, kind in MODELS.items() if kind is type(config)]
    if not names:
        raise BaseError(f"{type(config).__name__} is the config of no model in MODELS")
    if pooling is not None and pooling not in _POOLINGS:
        raise UnknownNameError("pooling", pooling, _POOLINGS)
    said = {
        "format": FORMAT,
        MARK: names[0],
        "config": asdict(config),  # type: ignore[call-overload]
        "pooling": pooling,
        "max_length": max_length,
    }
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError(f"{path} exists; name a new folder, or remove it")
    part = path.with_name(f".part-{path.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write(part, module, said, tokenizer)
        size = _finish(part, path)
    except OSError as cause:
        raise StorageError(
            f"cannot write {path}: {cause}; free space, or another folder"
        ) from cause
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return size


def _write(part: Path, module: nn.Module, said: dict[str, Any], tokenizer: Any) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    _check(state, said)
    try:
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as cause:
        raise StorageError(f"cannot write {part}: {cause}; free space") from cause
    (part / "config.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(part)


def _check(state: dict[str, Any], said: dict[str, Any]) -> None:
    expected = Own(said[MARK], said["config"]).shapes()
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else None
        if found != expected.get(name):
            raise BaseError(
                f"tensor {name!r} of the module has the shape {found}, by the config "
                f"{expected.get(name)}; save a module with the config that built it"
            )


def _finish(part: Path, path: Path) -> int:
    """Make the files durable, give the folder its name, and return its bytes."""
    for file in (*part.iterdir(), part):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    size = sum(file.stat().st_size for file in part.iterdir())
    if path.exists():
        path.rmdir()
    part.rename(path)
    return size
