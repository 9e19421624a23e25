"""A delta merged into its base, as a folder that transformers loads."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graftwork._errors import UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta, check
from graftwork.formats._card import CARD, model_card
from graftwork.formats._peft_export import ExportOptions, head_port, head_with_names
from graftwork.formats._task_names import task_model
from graftwork.formats._write import new_folder, size_of


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did.

    Attributes:
        bytes: of the folder.
        tensors: canonical names of the changed tensors.
        error: largest difference between an adapted value and what is stored, over all changed
            tensors; 0 where the base's type holds it, as float32 does.
        worst: name of the tensor where it is largest; None where the merge is exact.
    """

    bytes: int
    tensors: tuple[str, ...]
    error: float
    worst: str | None

    @property
    def exact(self) -> bool:
        """Whether the folder's weights are the adapted ones to the bit."""
        return self.error == 0.0


def export_merged(
    delta: Delta,
    base: Base,
    folder: str | os.PathLike[str],
    options: ExportOptions | None = None,
) -> Merged:
    """Write base and delta merged into one transformers folder, and say what that cost.

    Weights keep the base's type, and tied ones stay tied; the folder has config.json,
    model.safetensors, the tokenizer and a card. The base is copied, never changed.

    Arguments:
        delta: with the port "head" only where `options.task_type` names the class that has one.
        base: of a transformers model.
        folder: must not exist, or be empty.
        options: `task_type` and `head_activation`; see `ExportOptions`.

    Raises:
        FingerprintError: the delta was made for another base.
        UnsupportedError: the base is no transformers model, or a port has no place in it.
        StorageError: the folder is occupied, or the disk is full.

    Example:
        >>> export_merged(delta, base, "merged").exact  # doctest: +SKIP
        True
    """
    check(base, delta)
    options = options or ExportOptions()
    if not hasattr(base.model, "save_pretrained"):
        raise UnsupportedError(
            f"a {type(base.model).__name__} is no transformers model, so there is no folder that "
            "transformers would load; use the view's state_dict()"
        )
    head = head_port(delta)
    outputs = int(delta.ports[head].config["out_features"]) if head else None
    model: Any = copy.deepcopy(base.model)
    error, worst = _merge(base, delta, model)
    if head is not None:
        model = _with_head(model, base, delta, options, outputs)
    _label(model, delta)
    with new_folder(folder) as part, _quiet():
        model.save_pretrained(part)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(part)
        (part / CARD).write_text(model_card(delta, base.name, merged=True), encoding="utf-8")
    return Merged(size_of(folder), tuple(sorted(delta.updates)), error, worst)


def _merge(base: Base, delta: Delta, model: nn.Module) -> tuple[float, str | None]:
    """Write adapted values into `model`; return the largest rounding error and where it is."""
    largest, worst = 0.0, None
    for name, update in delta.updates.items():
        piece = base.names[name]
        target = piece.of(model.get_parameter(piece.parameter).detach())
        adapted = update.adapted(target)
        target.copy_(adapted)
        error = float((target.to(adapted.dtype) - adapted).abs().max()) if adapted.numel() else 0.0
        if error > largest:
            largest, worst = error, name
    return largest, worst


def _with_head(
    model: nn.Module, base: Base, delta: Delta, options: ExportOptions, outputs: int | None
) -> Any:
    """Return the task's model, with the merged base and the head in it."""
    task_type = options.task_type or delta.provenance.get("task_type")
    names, (_, head) = head_with_names(delta, base, task_type, outputs, options)
    whole = task_model(base, str(task_type), outputs)
    state: dict[str, Tensor] = {names.of(n): t for n, t in model.state_dict().items()}
    dtype = next(model.parameters()).dtype
    state |= {name: tensor.to(dtype) for name, tensor in head.items()}
    known = whole.state_dict()
    lacking = sorted(set(known) - set(state))
    if lacking:
        raise UnsupportedError(
            f"neither the base nor the head has {lacking[0]!r} of {type(whole).__name__}"
        )
    whole.load_state_dict({name: state[name] for name in known})
    return whole.to(dtype).eval()


def _label(model: Any, delta: Delta) -> None:
    labels: Mapping[str, Any] | Any = delta.signature.get("labels") or ()
    if labels and len(labels) == getattr(model.config, "num_labels", None):
        model.config.id2label = {i: str(label) for i, label in enumerate(labels)}
        model.config.label2id = {str(label): i for i, label in enumerate(labels)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars of transformers out of our output."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
