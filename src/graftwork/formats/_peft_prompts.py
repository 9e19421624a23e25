"""Prompts and prefixes of PEFT: vectors in a file of their own, as ports inside the base.

Shape legend: n vectors, h width of an embedding; l layers, k key and value heads, w width of a
head. PEFT stores a prompt as `(n, h)` (twice n rows where a decoder was reserved for) and a prefix
as `(n, l * 2 * k * w)`, keys before values; the port of a prefix is `(l, 2, k, n, w)`.

Both are run before saving: whatever network made the vectors (P-tuning, a prefix with a
projection), the file holds what it gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from graftwork._errors import DeltaFileError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import (
    Delta,
    Port,
    input_table,
    is_causal,
    place_of,
    prefix_sizes,
    quantise,
    values_of,
    view,
)
from graftwork.formats._peft_config import PROMPTS, PeftConfig, Virtual
from graftwork.formats._peft_keys import VECTORS

_READS_TOKEN_TYPES = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
"""Tasks whose class in PEFT hands token types on; the other ones drop them."""


def prompt_ports(
    base: Base, config: PeftConfig, vectors: Tensor | None, stored: str | None
) -> dict[str, Port]:
    """Return the port that the vectors of a file are.

    Args:
        base: the base.
        config: of the adapter.
        vectors: PEFT's `prompt_embeddings`; None where the file lacks them.
        stored: type of the values in the delta; None keeps the file's.

    Raises:
        DeltaFileError: no vectors, or not as many or as wide as the config and the base say.
        UnsupportedError: PEFT would run them in another way than `view` does; says in which.
    """
    virtual = config.virtual
    if virtual is None:
        return {}
    kind = PROMPTS[config.kind]
    check_runs_alike(base, kind, config.task_type)
    if vectors is None:
        raise DeltaFileError(f"the adapter's file has no {VECTORS!r}, which hold its {kind}")
    table, embeddings = input_table(base)
    if kind == "prompt":
        size = {"length": virtual.tokens, "width": int(embeddings.shape[1])}
        shaped = _prompt_vectors(vectors, virtual, size, config.task_type)
    else:
        size = {"length": virtual.tokens, **prefix_sizes(base.model)}
        shaped = _prefix_vectors(vectors, virtual, size)
    values = quantise(shaped.contiguous(), stored or str(vectors.dtype).removeprefix("torch."))
    return {f"{kind}:{table}": Port(kind, size, {"vectors": values})}


def prompt_port(delta: Delta) -> str | None:
    """Return the name of the delta's port that PEFT calls a prompt or prefix; None without one."""
    held = (n for n, port in delta.ports.items() if port.kind in PROMPTS.values())
    return next((n for n in held if place_of(n, delta.ports[n].kind)), None)


def prompt_files(
    base: Base, delta: Delta, name: str, task_type: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the config of PEFT that hold a prompt or prefix.

    Raises:
        UnsupportedError: PEFT would run it in another way than `view` does; says in which.
    """
    port = delta.ports[name]
    view(base, delta)
    if task_type is None:
        raise UnsupportedError(
            f"PEFT runs a {port.kind} only in the class of a task: name it with task_type='SEQ_CLS'"
            ", 'CAUSAL_LM' or another; 'FEATURE_EXTRACTION' wraps the base as it is"
        )
    check_runs_alike(base, port.kind, task_type)
    stored = port.tensors["vectors"]
    vectors = stored if isinstance(stored, Tensor) else values_of(stored)
    model: Any = getattr(base.model, "config", None)
    config: dict[str, Any] = {
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": int(port.config["length"]),
    }
    if port.kind == "prompt":
        width, sizes = int(port.config["width"]), ("num_hidden_layers", "num_attention_heads")
        layers, heads = (getattr(model, size, None) for size in sizes)
    else:
        layers, heads = port.config["layers"], port.config["heads"]
        width = int(heads) * int(port.config["width"])
        # (l, 2, k, n, w) -> (n, l * 2 * k * w)
        vectors = vectors.permute(3, 0, 1, 2, 4).reshape(vectors.shape[3], -1)
    config |= {"token_dim": width, "num_layers": layers, "num_attention_heads": heads}
    method = "PROMPT_TUNING" if port.kind == "prompt" else "PREFIX_TUNING"
    return {VECTORS: vectors}, {"peft_type": method, **config}


def check_runs_alike(base: Base, kind: str, task_type: str | None) -> None:
    """Check that PEFT's class of a task runs a prompt or prefix as `view` does.

    Raises:
        UnsupportedError: names what differs.
    """
    config: Any = getattr(base.model, "config", None)
    types = getattr(config, "type_vocab_size", None) or 1
    if types > 1 and task_type not in _READS_TOKEN_TYPES:
        raise UnsupportedError(
            f"PEFT drops token types under task_type {task_type!r}, and the base reads {types} of "
            "them: a pair of texts would give something else here; if rows are single texts, state "
            "'TOKEN_CLS' as the task_type, which keeps them"
        )
    if kind == "prompt":
        _check_table(base)


def refuse_head(base: Base, kind: str, task_type: str | None, head: str) -> None:
    """Raise where the head of a task reads another position than a head outside the base does.

    Args:
        base: the base.
        kind: of the port beside the head.
        task_type: PEFT's name of the task.
        head: name of the head, for the message.

    Raises:
        UnsupportedError: says which position.
    """
    if kind == "prompt" and task_type == "SEQ_CLS":
        place = (
            "the last position, padding too, since it does not see the token ids"
            if is_causal(base.model)
            else "position 0, which is the prompt's own"
        )
        raise UnsupportedError(
            f"the head {head!r} is no part of the base, and under a prompt that of PEFT's SEQ_CLS "
            f"reads {place}: load the base with the class of the task "
            "(AutoModelForSequenceClassification), so that its head is run as PEFT runs it"
        )


def _prompt_vectors(
    vectors: Tensor, virtual: Virtual, size: Mapping[str, int], task_type: str | None
) -> Tensor:
    """Return the vectors `(n, h)`; PEFT itself never reads those reserved for a decoder."""
    if virtual.width not in (None, size["width"]):
        raise DeltaFileError(
            f"token_dim is {virtual.width}, the base's input embeddings have {size['width']}: "
            "another base, or another config"
        )
    most = 2 if task_type == "SEQ_2_SEQ_LM" else 1
    if virtual.parts > most:
        raise UnsupportedError(
            f"num_transformer_submodules is {virtual.parts} under task_type {task_type!r}, where "
            f"PEFT's prompt stands before {most} of them"
        )
    _check_shape(vectors, (virtual.tokens * virtual.parts, size["width"]))
    return vectors[: virtual.tokens]


def _prefix_vectors(vectors: Tensor, virtual: Virtual, size: Mapping[str, int]) -> Tensor:
    """Return keys and values `(l, 2, k, n, w)`."""
    layers, heads, width = size["layers"], size["heads"], size["width"]
    if virtual.parts != 1:
        raise UnsupportedError(
            f"num_transformer_submodules is {virtual.parts}: a prefix of an encoder and a decoder "
            "has no port"
        )
    said = {
        "num_layers": (virtual.layers, layers),
        "num_attention_heads": (virtual.heads, heads),
        "token_dim": (virtual.width, heads * width),
    }
    for option, (theirs, ours) in said.items():
        if theirs not in (None, ours):
            raise DeltaFileError(
                f"{option} is {theirs}, the base's keys and values want {ours}: another base, or "
                "another config"
            )
    _check_shape(vectors, (virtual.tokens, layers * 2 * heads * width))
    return vectors.reshape(virtual.tokens, layers, 2, heads, width).permute(1, 2, 3, 0, 4)


def _check_shape(vectors: Tensor, wanted: tuple[int, int]) -> None:
    if tuple(vectors.shape) != wanted:
        raise DeltaFileError(
            f"tensor {VECTORS!r} has shape {tuple(vectors.shape)}; the base and num_virtual_tokens "
            f"of the config want {wanted}: another base, or another config"
        )


def _check_table(base: Base) -> None:
    """Check that what PEFT takes for the word embeddings are the input embeddings.

    It looks for "embeddings.word_embeddings", then for the first parameter of the inner model with
    as many rows as the vocabulary has words.
    """
    model: Any = base.model
    table = model.get_input_embeddings().weight
    named = getattr(getattr(model, "embeddings", None), "word_embeddings", None)
    if named is not None:
        name, found = "embeddings.word_embeddings", named.weight
    else:
        kind: Any = _pretrained()
        inner = next((m for m in model.children() if isinstance(m, kind)), model)
        rows = getattr(getattr(model, "config", None), "vocab_size", table.shape[0])
        fits = ((n, p) for n, p in inner.named_parameters() if p.shape[:1] == (rows,))
        name, found = next(fits, ("nothing", None))
    if found is not table:
        raise UnsupportedError(
            f"PEFT takes {name!r} for the word embeddings of {type(model).__name__}, which are "
            "others: its prompt would stand before other vectors"
        )


def _pretrained() -> type:
    from transformers import PreTrainedModel

    return PreTrainedModel
