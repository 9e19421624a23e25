"""A delta as a PEFT folder that `PeftModel.from_pretrained` loads."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graftwork._errors import UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta, Update, check, values_of
from graftwork.formats._heads import TWO_LAYERS, head_tensors
from graftwork.formats._peft_import import CONFIG, WEIGHTS
from graftwork.formats._peft_keys import PREFIX, PROMPT_PREFIX
from graftwork.formats._peft_prompts import prompt_files, prompt_port, refuse_head
from graftwork.formats._peft_sort import Sorted, sort_saved, sort_updates
from graftwork.formats._places import Place, factors_of, output_norms
from graftwork.formats._task_names import TaskNames, task_names
from graftwork.formats._write import new_folder, size_of, write_json, write_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What a PEFT folder says beyond the delta."""

    task_type: str | None = None
    """PEFT's name of the task ("SEQ_CLS", "CAUSAL_LM", ...), from which follows which class of
    model its users wrap; None: as it was imported, otherwise the base itself is wrapped."""
    base_name: str | None = None
    """What PEFT loads the base from; None: the name of the base."""
    head_activation: str | None = None
    """What lies inside the task model's head of two layers; must be the port's."""


def export_peft(
    delta: Delta,
    base: Base,
    folder: str | os.PathLike[str],
    options: ExportOptions | None = None,
) -> int:
    """Write a delta as a PEFT adapter and return the bytes written.

    Low-rank terms become LoRA with a rank and an alpha for each module, scales beside them DoRA's
    magnitudes, scales alone IA3; dense terms become biases or modules that are stored whole; a
    prompt or prefix becomes PEFT's; the port "head" becomes the task model's head. Values keep
    their bits (8-bit ones become float32).

    Raises:
        FingerprintError: the delta was made for another base.
        UnsupportedError: a term or port that PEFT cannot hold, or would run in another way; names
            it.
        StorageError: the folder is occupied, or the disk is full.

    Example:
        >>> export_peft(delta, base, "my-lora")  # doctest: +SKIP
        >>> PeftModel.from_pretrained(model, "my-lora")  # doctest: +SKIP
    """
    check(base, delta)
    options = options or ExportOptions()
    task_type = options.task_type or delta.provenance.get("task_type")
    inside = prompt_port(delta)
    rest = _without(delta, inside)
    head = head_port(rest)
    outputs = int(delta.ports[head].config["out_features"]) if head else None
    if inside is None:
        names = task_names(base, task_type, outputs)
        found, prefix = sort_updates(base, delta), PREFIX
        tensors, config = _adapted_tensors(found, names), _adapted_config(found, base, names)
    else:
        # checked before the names: a clearer error where no class of a task was named
        tensors, config = prompt_files(base, delta, inside, task_type)
        # PEFT's class for features runs any model as it is, heads of its own included
        wrapped = None if task_type == "FEATURE_EXTRACTION" else task_type
        names = task_names(base, wrapped, outputs)
        found, prefix = sort_saved(base, delta), PROMPT_PREFIX
    whole = _whole_tensors(found, base, delta, names)
    saved = [names.of(module) for module in found.saved]
    if head is not None:
        if inside is not None:
            refuse_head(base, delta.ports[inside].kind, task_type, head)
        module, stored = _head(delta, names, options)
        whole |= stored
        saved.append(module)
    tensors |= {f"{prefix}{name}": tensor for name, tensor in whole.items()}
    config |= {
        "modules_to_save": saved or None,
        "task_type": task_type,
        "base_model_name_or_path": options.base_name or base.name,
    }
    with new_folder(folder) as part:
        write_tensors(part / WEIGHTS, tensors)
        write_json(part / CONFIG, config)
    return size_of(folder)


def _without(delta: Delta, port: str | None) -> Delta:
    kept = {name: held for name, held in delta.ports.items() if name != port}
    return dataclasses.replace(delta, ports=kept)


def _adapted_tensors(found: Sorted, names: TaskNames) -> dict[str, Tensor]:
    dora = any(update.scale is not None for _, update in found.adapted.values())
    out: dict[str, Tensor] = {}
    for module, (place, update) in found.adapted.items():
        key = f"{PREFIX}{names.of(module)}"
        if found.kind == "IA3":
            out[f"{key}.ia3_l"] = _ia3(place, update, module in found.feedforward)
            continue
        if update.low_rank is None:
            raise UnsupportedError(f"{module!r} has no low-rank term")
        a, b = factors_of(place, update.low_rank)
        embedding = place.layout == "embedding"
        out[f"{key}.lora_embedding_A" if embedding else f"{key}.lora_A.weight"] = a
        out[f"{key}.lora_embedding_B" if embedding else f"{key}.lora_B.weight"] = b
        if dora:
            out[f"{key}.lora_magnitude_vector"] = _magnitude(place, update)
    return out


def _magnitude(place: Place, update: Update) -> Tensor:
    """Return m of DoRA: what the norm of each output's row is after the scale."""
    plain = Update(update.shape, low_rank=update.low_rank)
    norms = output_norms(place, plain.adapted(place.value().double()))
    if update.scale is not None:
        norms = norms * values_of(update.scale).double().reshape(-1)
    shape = (1, -1, *(1,) * len(place.kernel)) if place.kernel else (-1,)
    return norms.reshape(shape).to(place.value().dtype)


def _ia3(place: Place, update: Update, feeds_forward: bool) -> Tensor:
    if update.scale is None:
        raise UnsupportedError(f"{place.name!r} has no scale")
    scale = update.scale if isinstance(update.scale, Tensor) else values_of(update.scale)
    if place.kernel:
        return scale.reshape(1, -1, *(1,) * len(place.kernel))
    return scale.reshape((1, -1) if feeds_forward else (-1, 1))


def _whole_tensors(found: Sorted, base: Base, delta: Delta, names: TaskNames) -> dict[str, Tensor]:
    """Return the stored biases and modules by name, with the delta's values in them."""
    state = dict(base.model.state_dict(keep_vars=False))
    kept: list[str] = []
    for module in found.saved:
        kept += [name for name in state if name.rpartition(".")[0] == module]
    mode = _bias_mode(found)
    if mode == "all":
        kept += [name for name in state if name.endswith(".bias") or name == "bias"]
    elif mode == "lora_only":
        kept += [f"{module}.bias" for module in found.adapted if f"{module}.bias" in state]
    out: dict[str, Tensor] = {}
    for name in dict.fromkeys(kept):
        module, _, leaf = name.rpartition(".")
        inner = f"{module}.base_layer" if module in found.adapted else module
        key = f"{names.of(inner)}.{leaf}" if inner else leaf
        out[key] = _adapted_value(base, delta, name, state[name])
    return out


def _adapted_value(base: Base, delta: Delta, name: str, value: Tensor) -> Tensor:
    canonical = base.names.aliases.get(name, name)
    for key, update in delta.updates.items():
        if base.names[key].name == canonical:
            return update.adapted(value).to(value.dtype)
    return value


def _bias_mode(found: Sorted) -> str:
    if not found.biases:
        return "none"
    inside = all(name.rpartition(".")[0] in found.adapted for name in found.biases)
    return "lora_only" if inside else "all"


def _adapted_config(found: Sorted, base: Base, names: TaskNames) -> dict[str, Any]:
    modules = [names.of(module) for module in found.adapted]
    everything = [names.of(name) for name, _ in base.model.named_modules() if name]
    layouts = {place.layout for place, _ in found.adapted.values()}
    config: dict[str, Any] = {
        "peft_type": found.kind,
        "inference_mode": True,
        "target_modules": _targets(modules, everything),
        # PEFT sets it right by each module's type; this spares its users a warning
        "fan_in_fan_out": "transposed" in layouts and "linear" not in layouts,
    }
    if found.kind == "IA3":
        forward = [names.of(module) for module in found.feedforward]
        # here PEFT compares ends of names without asking for a dot before them
        alike = any(m.endswith(tuple(forward)) and m not in forward for m in modules if forward)
        return {**config, "feedforward_modules": _expression(forward) if alike else forward}
    return {
        **config,
        **_ranks(found, names),
        "bias": _bias_mode(found),
        "use_dora": any(update.scale is not None for _, update in found.adapted.values()),
        "init_lora_weights": True,
        "lora_dropout": 0.0,
    }


def _ranks(found: Sorted, names: TaskNames) -> dict[str, Any]:
    """Return r and lora_alpha of most modules, and patterns for the other ones."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, (_, update) in found.adapted.items():
        if update.low_rank is not None:
            rank = update.low_rank.rank
            alpha = update.low_rank.factor * rank
            ranks[names.of(module)] = rank
            alphas[names.of(module)] = int(alpha) if float(alpha).is_integer() else alpha
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exactly(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {_exactly(m): a for m, a in alphas.items() if a != alpha},
    }


def _targets(modules: list[str], everything: Iterable[str]) -> list[str] | str:
    """Return names that PEFT takes for these modules alone: a list, else a regular expression."""
    chosen = set(modules)
    ends = tuple(f".{module}" for module in modules)
    if any(name.endswith(ends) and name not in chosen for name in everything):
        return _expression(modules)
    return modules


def _expression(modules: list[str]) -> str:
    return "|".join(re.escape(module) for module in modules)


def _exactly(module: str) -> str:
    return f"^{re.escape(module)}"


def head_port(delta: Delta) -> str | None:
    """Return the name of the delta's one port, a head; None where it has no ports.

    Raises:
        UnsupportedError: another port, which other libraries cannot hold.
    """
    for name, port in delta.ports.items():
        if name != "head" or port.kind != "head":
            raise UnsupportedError(
                f"other libraries cannot hold the port {name!r} of kind {port.kind!r}; keep the "
                "delta in graftwork's own file, or drop the port with "
                "dataclasses.replace(delta, ports={})"
            )
    return next(iter(delta.ports), None)


def head_with_names(
    delta: Delta, base: Base, task_type: str | None, outputs: int | None, options: ExportOptions
) -> tuple[TaskNames, tuple[str, dict[str, Tensor]]]:
    """Return the names of a task's model, and the name and tensors of its head."""
    names = task_names(base, task_type, outputs)
    return names, _head(delta, names, options)


def _head(delta: Delta, names: TaskNames, options: ExportOptions) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the task model's head and its tensors.

    Raises:
        UnsupportedError: no task model is known, or its head has other layers than the port.
    """
    port, known = delta.ports["head"], (delta.provenance.get("heads") or {}).get("head")
    module, form = (known["module"], known) if known else _found_head(names.head)
    tensors = head_tensors(port, module, form)
    activation = port.config.get("activation", "tanh")
    if form["layers"] == 2 and not known and options.head_activation != activation:
        raise UnsupportedError(
            f"the port 'head' has {activation!r} between its layers; if {module!r} of the task "
            f"model has too, say so with head_activation={activation!r}"
        )
    wanted = names.head or {name: tuple(t.shape) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if wanted.get(name) != tuple(tensor.shape):
            raise UnsupportedError(
                f"the port 'head' gives {name!r} the shape {tuple(tensor.shape)}, the task model "
                f"has {wanted.get(name)}"
            )
    return module, tensors


def _found_head(lacking: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]]:
    """Return the head among the parameters that a task model has and the base lacks."""
    stems = {name.rpartition(".")[0] for name in lacking}
    if len(stems) == 1:
        return stems.pop(), {"layers": 1, "bias": any(n.endswith("bias") for n in lacking)}
    above = {stem.rpartition(".")[0] for stem in stems}
    if len(above) == 1 and {s.rpartition(".")[2] for s in stems} == set(TWO_LAYERS):
        return above.pop(), {"layers": 2, "bias": True}
    raise UnsupportedError(
        "nothing says where the port 'head' goes in PEFT's model: name the task with "
        f"task_type='SEQ_CLS' or another; the task model adds {sorted(lacking) or 'nothing'}"
    )
