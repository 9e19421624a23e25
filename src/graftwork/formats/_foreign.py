"""Reading foreign files strictly: a JSON object, tensors without pickle, names beside them."""

from __future__ import annotations

import hashlib
import json
import pickle  # noqa: TID251 only to name the error that torch's restricted reader raises
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import DeltaFileError, did_you_mean

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        DeltaFileError: there is no such file, or it holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise DeltaFileError(f"{path.parent} has no {path.name}{_inside(path.parent)}") from None
    except (OSError, ValueError, RecursionError) as cause:
        raise DeltaFileError(f"{path} is not JSON: {cause}") from None
    if not isinstance(found, dict):
        raise DeltaFileError(f"{path} holds {type(found).__name__}, not a JSON object")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        DeltaFileError: the file is missing, truncated or of another kind, or holds no tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise DeltaFileError(f"{path.parent} has no {path.name}{_inside(path.parent)}") from None
    except (OSError, SafetensorError, ValueError) as cause:
        raise DeltaFileError(
            f"{path} is truncated, or no safetensors file: {cause}; fetch it again"
        ) from None
    return _checked(path, tensors)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a torch checkpoint; law 11 allows this in a one-shot import only.

    The file is unpickled by torch's restricted reader (weights_only), which builds tensors and
    containers and runs no code of the file.

    Raises:
        DeltaFileError: the file is missing or damaged, holds other objects than tensors, or none.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except FileNotFoundError:
        raise DeltaFileError(f"{path} does not exist") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as cause:
        reason = str(cause).strip().partition("\n")[0]
        raise DeltaFileError(
            f"{path} cannot be read as tensors only (weights_only): {reason}"
        ) from None
    if not isinstance(found, Mapping):
        raise DeltaFileError(f"{path} holds {type(found).__name__}, not a state dict")
    return _checked(path, dict(found))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: Path, tensors: dict[str, Any]) -> dict[str, Tensor]:
    if not tensors:
        raise DeltaFileError(
            f"{path} holds no tensors: an adapter was saved before it was gathered"
        )
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise DeltaFileError(f"{path}: {key!r} is {type(tensor).__name__}, not a tensor")
        if tensor.dtype not in _FLOATS and key.rpartition(".")[2] != "num_batches_tracked":
            raise DeltaFileError(
                f"{path.name}: tensor {key!r} is {tensor.dtype}, an adapter has floating values"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DeltaFileError(f"{path.name}: tensor {key!r} holds NaN or infinity")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key occurs twice")
    return mapping


def _inside(folder: Path) -> str:
    """Return a hint: adapters that PEFT saved under a name of their own, or what is there."""
    if not folder.is_dir():
        return "; there is no such folder"
    named = sorted(p.parent.name for p in folder.glob("*/adapter_config.json"))
    if named:
        return f"; it holds the adapters {', '.join(map(repr, named))}: name one of those folders"
    return did_you_mean("adapter_config.json", (p.name for p in folder.iterdir()))
