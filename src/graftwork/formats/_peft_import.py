"""A PEFT folder (adapter_config.json, adapter_model.safetensors) as a delta."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwork._errors import DeltaFileError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta, LowRank, Stored, Update, quantise, view
from graftwork.formats._foreign import read_config, read_pickled, read_tensors
from graftwork.formats._heads import head_ports
from graftwork.formats._peft_config import PROMPTS, PeftConfig, parse_config
from graftwork.formats._peft_keys import Adapter, sort_keys
from graftwork.formats._peft_prompts import prompt_ports, refuse_head
from graftwork.formats._places import (
    Place,
    find_place,
    low_rank_of,
    output_norms,
    over_inputs,
    over_outputs,
)
from graftwork.formats._stamp import origin, stamped
from graftwork.formats._targets import check_targets
from graftwork.formats._whole import add_dense, take_whole

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What the files of adapters leave open."""

    stored: str | None = None
    """Type of factors and heads in the delta; None keeps each tensor's own, so that no bit changes.
    Scales stay as they are, and differences of biases are float32: an error of theirs would be one
    of the base's own weights."""
    head_activation: str | None = None
    """Activation inside a head of two layers, which no file states: "tanh", "relu", "gelu"."""
    signature: Mapping[str, Any] | None = None
    """JSON of the signature; None gives a bare weight difference."""
    unpickle: bool = False
    """Whether an adapter_model.bin may be read, by torch's restricted reader; only ever for this
    one import, and the delta that comes of it is no pickle."""


def import_peft(
    folder: str | os.PathLike[str], base: Base, options: ImportOptions | None = None
) -> Delta:
    """Return the delta that a PEFT adapter is.

    LoRA (rank and alpha patterns, rsLoRA, DoRA, biases) becomes low-rank, scale and dense terms,
    IA3 becomes scales, prompts and prefixes become ports inside the base, modules that PEFT stores
    whole become dense terms, and a head that the base lacks becomes a port. The values keep their
    bits. Every key and option is accounted for: what
    cannot be honoured is an error that names it.

    Arguments:
        folder: what `save_pretrained` wrote. Of an adapter with a name of its own, its subfolder.
        base: the model that the adapter was trained on, with or without the class of its task. The
            files do not say which it was: the delta is stamped "asserted by the user".
        options: see `ImportOptions`.

    Raises:
        DeltaFileError: a file is missing, truncated or pickled, or a tensor is missing,
            superfluous, mis-shaped or of a mixed type.
        UnsupportedError: another method, an option that cannot be honoured, or a prompt or prefix
            that PEFT runs in another way than `view` does.
        UnknownNameError: a tensor belongs to a module that the base does not have.

    Example:
        >>> delta = import_peft("my-lora", load("minilm"))  # doctest: +SKIP
        >>> delta.fingerprint.asserted  # doctest: +SKIP
        True
    """
    path, options = Path(folder), options or ImportOptions()
    config = parse_config(read_config(path / CONFIG), CONFIG)
    weights, tensors = _read(path, options.unpickle)
    adapter = sort_keys(tensors, config.kind)
    places = {name: find_place(base, name) for name in adapter.parts}
    check_targets(base, config, {name: place.name for name, place in places.items()})
    updates: dict[str, Update] = {}
    for name, place in places.items():
        _add_module(updates, place, config, adapter, (name, options))
    inside = prompt_ports(base, config, adapter.vectors, options.stored)
    heads = take_whole(updates, base, config, adapter)
    ports, remembered = head_ports(heads, options.head_activation, options.stored)
    known = {**origin("peft", weights), "task_type": config.task_type, "heads": remembered}
    delta = stamped(base, updates, {**inside, **ports}, options.signature, known)
    if inside:
        for head in heads:
            refuse_head(base, PROMPTS[config.kind], config.task_type, head)
        # whether the base can run them at all: better said now than at the first call
        view(base, delta)
    return delta


def _read(path: Path, unpickle: bool) -> tuple[Path, dict[str, Tensor]]:
    if (path / WEIGHTS).exists() or not (path / PICKLED).exists():
        return path / WEIGHTS, read_tensors(path / WEIGHTS)
    if not unpickle:
        raise DeltaFileError(
            f"{path} holds its weights as a pickle ({PICKLED}), which is not read unless you say "
            "so for this one import: ImportOptions(unpickle=True), or --unpickle"
        )
    return path / PICKLED, read_pickled(path / PICKLED)


def _add_module(
    updates: dict[str, Update],
    place: Place,
    config: PeftConfig,
    adapter: Adapter,
    named: tuple[str, ImportOptions],
) -> None:
    name, options = named
    parts = adapter.parts[name]
    if config.kind == "IA3":
        _add_scale(updates, place, parts["scale"], config.feeds_forward(name))
        return
    _check_parts(name, parts, config)
    _check_factors(place, name, config, adapter, options)
    a, b = parts["a"], parts["b"]
    stored = (options.stored or _type(a), options.stored or _type(b))
    term = low_rank_of(place, a, b, config.factor_of(name), stored)
    scale = None
    if config.dora:
        scale = _dora_scale(place, term, parts["magnitude"], adapter.keys[name, "magnitude"])
    updates[place.weight.name] = Update(place.weight.shape, low_rank=term, scale=scale)
    if "b_bias" in parts:
        if place.bias is None:
            raise UnsupportedError(
                f"module {name!r} has no bias that {adapter.keys[name, 'b_bias']!r} could change"
            )
        add_dense(updates, place.bias, config.factor_of(name) * parts["b_bias"].double())


def _check_parts(name: str, parts: Mapping[str, Tensor], config: PeftConfig) -> None:
    wanted = {"a": "lora_A", "b": "lora_B"}
    wanted |= {"magnitude": "lora_magnitude_vector"} if config.dora else {}
    for part, ending in wanted.items():
        if part not in parts:
            raise DeltaFileError(f"module {name!r} has no {ending} in the adapter's file")
    if "magnitude" in parts and not config.dora:
        raise DeltaFileError(f"module {name!r} has a magnitude, but use_dora is off in {CONFIG}")
    if "b_bias" in parts and not config.lora_bias:
        raise DeltaFileError(f"module {name!r} has lora_B.bias, but lora_bias is off in {CONFIG}")
    if config.lora_bias and "b_bias" not in parts:
        raise DeltaFileError(f"module {name!r} has no lora_B.bias, but lora_bias is on in {CONFIG}")


def _check_factors(
    place: Place, name: str, config: PeftConfig, adapter: Adapter, options: ImportOptions
) -> None:
    rank, kernel = config.rank_of(name), place.kernel
    wanted = {
        "a": (rank, place.inputs, *kernel),
        "b": (place.outputs, rank, *(1,) * len(kernel)),
        "b_bias": (place.outputs,),
    }
    for part, shape in wanted.items():
        tensor = adapter.parts[name].get(part)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise DeltaFileError(
                f"tensor {adapter.keys[name, part]!r} has shape {tuple(tensor.shape)}; the base's "
                f"module and rank {rank} of {CONFIG} want {shape}: another base, or another config"
            )
    a, b = adapter.parts[name]["a"], adapter.parts[name]["b"]
    if a.dtype != b.dtype and options.stored is None:
        raise DeltaFileError(
            f"the two factors of {name!r} are of mixed types, {a.dtype} and {b.dtype}; name one "
            "type for both with stored='float32'"
        )


def _dora_scale(place: Place, term: LowRank, magnitude: Tensor, key: str) -> Stored:
    """Return `m / ||W + factor B A||`, by which DoRA (Liu et al., 2024, eq. 5) multiplies rows."""
    if magnitude.numel() != place.outputs:
        raise DeltaFileError(
            f"tensor {key!r} has {magnitude.numel()} values, the module has {place.outputs} outputs"
        )
    adapted = Update(place.weight.shape, low_rank=term).adapted(place.value().double())
    ratio = magnitude.double().reshape(-1) / output_norms(place, adapted)
    return quantise(over_outputs(place, ratio), "float32")


def _add_scale(
    updates: dict[str, Update], place: Place, scale: Tensor, feeds_forward: bool
) -> None:
    """Add IA3's scale (Liu et al., 2022, sec. 3.3), of inputs or of outputs with their bias."""
    vector, stored = scale.reshape(-1), _type(scale)
    wanted = place.inputs if feeds_forward else place.outputs
    if vector.numel() != wanted:
        side = "inputs (feedforward_modules)" if feeds_forward else "outputs"
        raise DeltaFileError(
            f"ia3_l of {place.name!r} has shape {tuple(scale.shape)}, the module has {wanted} "
            f"{side}"
        )
    over = over_inputs if feeds_forward else over_outputs
    shaped = quantise(over(place, vector), stored)
    updates[place.weight.name] = Update(place.weight.shape, scale=shaped)
    if place.bias is not None and not feeds_forward:
        shape = place.bias.shape
        updates[place.bias.name] = Update(shape, scale=quantise(vector, stored))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
