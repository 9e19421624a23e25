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
from graftwork.formats._task_names import task_model, task_names
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
            Of a base without a head, `task_type` alone gives the task's class where its head is
            tied to the base, as in GPT-2.
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
    _refuse_int8(base)
    if not hasattr(base.model, "save_pretrained"):
        raise UnsupportedError(
            f"a {type(base.model).__name__} is no transformers model, so there is no folder that "
            "transformers would load; use the view's state_dict()"
        )
    head = head_port(delta)
    outputs = int(delta.ports[head].config["out_features"]) if head else None
    model: Any = copy.deepcopy(base.model)
    error, worst = _merge(base, delta, model)
    task_type = options.task_type or (delta.provenance.get("task_type") if head else None)
    if task_type is not None or head is not None:
        model = _of_task(model, base, delta, (task_type, outputs), options)
    _label(model, delta)
    with new_folder(folder) as part, _quiet():
        model.save_pretrained(part)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(part)
        (part / CARD).write_text(model_card(delta, base.name, merged=True), encoding="utf-8")
    return Merged(size_of(folder), tuple(sorted(delta.updates)), error, worst)


def _refuse_int8(base: Base) -> None:
    if base.quantised:
        raise UnsupportedError(
            f"this base holds {len(base.quantised)} tensors in 8 bits (first: "
            f"{base.quantised[0]!r}), into which nothing merges: load it without quantise, move "
            "the delta there by graftwork.deltas.rebase, measured, and merge that"
        )


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


def _of_task(
    model: nn.Module,
    base: Base,
    delta: Delta,
    task: tuple[str | None, int | None],
    options: ExportOptions,
) -> Any:
    """Return the task's model, with the merged base and the head in it.

    Raises:
        UnsupportedError: the task's model has a parameter that is neither in the base, nor tied to
            one of it, nor in the head.
    """
    task_type, outputs = task
    head: dict[str, Tensor] = {}
    if outputs is None:
        names = task_names(base, task_type, None)
    else:
        names, (_, head) = head_with_names(delta, base, task_type, outputs, options)
    whole: Any = task_model(base, str(task_type), outputs)
    dtype = next(model.parameters()).dtype
    state = {names.of(name): tensor for name, tensor in model.state_dict().items()}
    state |= {name: tensor.to(dtype) for name, tensor in head.items()}
    known = whole.state_dict()
    whole.to(dtype).load_state_dict({n: t for n, t in state.items() if n in known}, strict=False)
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    filled = {id(parameters[name]) for name in state if name in parameters}
    for name in known:
        if name not in state and id(parameters.get(name)) not in filled:
            raise UnsupportedError(
                f"neither the base nor a head has {name!r} of {type(whole).__name__}; load the "
                "base with the class of its task"
            )
    return whole.eval()


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
