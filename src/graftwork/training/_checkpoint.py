"""Checkpoints: all state of a run as safetensors and JSON, written whole or not at all.

checkpoints/
step-00000200/      state.safetensors, state.json
step-00000400/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import StorageError
from graftwork.training._files import new_folder, remove, storing, sweep

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A saved state.

    Attributes:
        tensors: all tensors by name.
        record: JSON: place of the run, early stopping, what the run reads.
    """

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Arguments:
        folder: made when the first one is saved.
        keep: newest ones that stay; two, so that one is whole whatever happens to the other.
        resume: False ignores what is there.
    """

    def __init__(self, folder: Path, keep: int = 2, *, resume: bool = True) -> None:
        self.folder, self.keep, self.resume = folder, keep, resume
        sweep(folder)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, then remove the oldest beyond `keep`.

        Raises:
            StorageError: the disk is full; older checkpoints are untouched.
        """
        try:
            self._write(self._path(step), tensors, record)
        except StorageError as error:
            raise StorageError(f"{error}; {self.last_words()}") from error
        for old in self.steps()[: -self.keep]:
            remove(self._path(old))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint; None at the start of a run.

        Raises:
            StorageError: it was changed or damaged; says what to remove.
        """
        steps = self.steps() if self.resume else []
        return _read(self._path(steps[-1])) if steps else None

    def clear(self) -> None:
        """Remove all checkpoints: the run is done."""
        with storing(f"remove {self.folder}"):
            remove(self.folder)

    def last_words(self) -> str:
        """Return, for an error message, which checkpoint is kept."""
        steps = self.steps()
        if not steps:
            return "no checkpoint was saved yet"
        return f"the last good checkpoint, of step {steps[-1]}, is kept in {self.folder}"

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _write(self, path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        from safetensors.torch import save_file

        with new_folder(path) as part:
            save_file(_owned(tensors), part / "state.safetensors")
            text = json.dumps({"format": FORMAT, **record}, indent=1, sort_keys=True)
            (part / "state.json").write_text(text, encoding="utf-8")


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise StorageError(
                f"checkpoint {path} has format {record['format']}, this graftwork reads {FORMAT}"
            )
        return Checkpoint(load_file(path / "state.safetensors"), record)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StorageError(
            f"checkpoint {path} cannot be read ({error}); remove this folder to go on from an "
            "earlier one"
        ) from error


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no storage, as safetensors asks; only views are copied."""
    seen: set[int] = set()
    owned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        if tensor.numel() and (not whole or storage.data_ptr() in seen):
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies, for a state that is to be kept while training goes on."""
    return {name: torch.clone(tensor.detach()) for name, tensor in tensors.items()}
