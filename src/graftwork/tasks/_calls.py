"""How a base is called: the explicit table `CALLS`, one entry a way.

Shape legend: B rows, L positions, H width, F features that a head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork._errors import InputError, UnsupportedError
from graftwork.deltas import rows_differ
from graftwork.tasks._call_spec import CallSpec, Ports, TaskBase, port_named
from graftwork.tasks._categories import codes_of
from graftwork.tasks._encoded import (
    PICTURE_MEMORY,
    ArrayInput,
    Arrays,
    Encoded,
    Pictures,
    decode_picture,
)
from graftwork.tasks._language import encode_prompts, run_language
from graftwork.tasks._pooling import VECTOR_KEYS, combine, pool, tensor_of
from graftwork.tasks._table import Table
from graftwork.tasks._texts import texts_of, tokenize, tokens_of
from graftwork.tasks._word_rows import encode_words, run_words


@dataclass(frozen=True, slots=True)
class Call:
    """One way to call a base.

    Attributes:
        texts: texts a row has; 0 for arrays.
        encode: (spec, base, table) -> all rows ready for batches.
        run: (spec, module, ports, inputs) -> features `(B, F)`, or the module's outputs without a
            head; of words and language `(B, L, F)`.
    """

    texts: int
    encode: Callable[[CallSpec, TaskBase, Table], Encoded]
    run: Callable[[CallSpec, nn.Module, Ports, Mapping[str, Tensor]], Tensor]


def _encode_single(spec: CallSpec, base: TaskBase, table: Table) -> Encoded:
    (texts,) = texts_of(spec, table)
    return tokens_of(base, tokenize(base, spec, texts, None), 1)


def _encode_pair(spec: CallSpec, base: TaskBase, table: Table) -> Encoded:
    first, second = texts_of(spec, table)
    return tokens_of(base, tokenize(base, spec, first, second), 1)


def _encode_two(spec: CallSpec, base: TaskBase, table: Table) -> Encoded:
    first, second = texts_of(spec, table)
    return tokens_of(base, tokenize(base, spec, first + second, None), 2)


def _vectors(spec: CallSpec, output: Any, mask: Tensor | None) -> Tensor:
    if spec.head is None:
        return tensor_of(output, VECTOR_KEYS)
    vectors = pool(output, mask, spec.pooling)
    return functional.normalize(vectors, dim=-1) if spec.normalise else vectors


def _run_text(
    spec: CallSpec, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]
) -> Tensor:
    del ports
    return _vectors(spec, module(**inputs), inputs["attention_mask"])


def _run_two(
    spec: CallSpec, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]
) -> Tensor:
    del ports
    # One forward of 2B rows is faster than two of B: less overhead and larger products.
    flat = {key: value.flatten(0, 1) for key, value in inputs.items()}
    if module.training or rows_differ(module):
        # Rows with deltas of their own have encodings of their own. Under dropout equal texts must
        # not share one: that they differ in nothing, not even in noise, would tell which are equal.
        vectors = _vectors(spec, module(**flat), flat["attention_mask"])
    else:
        different, place = _different(flat)
        vectors = _vectors(spec, module(**different), different["attention_mask"])[place]
    both = vectors.unflatten(0, (-1, 2))
    return combine(both[:, 0], both[:, 1], spec.features)


def _different(inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the different rows of `(N, L)` inputs, and `(N,)` the place of each row in them."""
    rows = torch.cat(list(inputs.values()), dim=1)
    different, place = torch.unique(rows, dim=0, return_inverse=True)
    return dict(zip(inputs, different.chunk(len(inputs), dim=1), strict=True)), place


def _run_array(
    spec: CallSpec, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]
) -> Tensor:
    del ports
    return _vectors(spec, module(_typed(inputs["x"], module)), None)


def _run_embedded(
    spec: CallSpec, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]
) -> Tensor:
    if spec.input is None:
        raise InputError("the call 'embedded' needs the signature's `input`: the name of a port")
    embedded = port_named(ports, spec.input)(inputs["x"])
    if embedded.dim() != 3:
        raise UnsupportedError(
            f"the port {spec.input!r} gave {tuple(embedded.shape)}; an input embedder gives (rows, "
            "positions, width)"
        )
    mask = torch.ones(embedded.shape[:2], dtype=torch.int64, device=embedded.device)
    output = module(inputs_embeds=_typed(embedded, module), attention_mask=mask)
    return _vectors(spec, output, mask)


def _typed(x: Tensor, module: nn.Module) -> Tensor:
    """Return numbers in the type of the module's own."""
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    return x if weight is None or not x.is_floating_point() else x.to(weight.dtype)


def _encode_array(spec: CallSpec, base: TaskBase, table: Table) -> Encoded:
    del base
    form = spec.array
    if form is None:
        raise InputError("arrays need the signature's `array`: shape, mean and std")
    name = spec.fields[0]
    values = table[name]
    if form.shape == (len(spec.fields),) and not form.picture and np.ndim(values[0]) == 0:
        return Arrays(_number_columns(spec, table, form), form)
    if len(spec.fields) > 1:
        raise InputError(f"the base takes one array a row, not the columns {spec.fields}")
    if form.picture and isinstance(values, list):
        if len(values) * int(np.prod(form.shape)) > PICTURE_MEMORY:
            return Pictures(values, form)
        rows = [_picture(value, form, table.where(row)) for row, value in enumerate(values)]
        return Arrays(np.stack(rows), form)
    if not isinstance(values, np.ndarray):
        values = _stack(values, form, name, table)
    if values.shape[1:] != form.shape:
        raise InputError(
            f"{table.source}: column {name!r} has rows of shape {values.shape[1:]}, but the "
            f"signature says {form.shape}"
        )
    _check_numbers(values, name, table)
    return Arrays(values, form)


def _picture(value: Any, form: ArrayInput, where: str) -> Any:
    if isinstance(value, np.ndarray):
        if value.shape != form.shape:
            raise InputError(f"{where}: picture of shape {value.shape}, not {form.shape}")
        return value
    return decode_picture(value, form, where)


def _stack(values: list[Any], form: ArrayInput, name: str, table: Table) -> Any:
    rows = []
    for row, value in enumerate(values):
        try:
            array = np.asarray(value, dtype=form.dtype)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{table.where(row)}: column {name!r} is not an array of numbers ({error})"
            ) from error
        if array.shape != form.shape:
            raise InputError(
                f"{table.where(row)}: column {name!r} has shape {array.shape}, not {form.shape}; "
                "rows must have one shape: pad, cut or resize them"
            )
        rows.append(array)
    return np.stack(rows)


def _number_columns(spec: CallSpec, table: Table, form: ArrayInput) -> Any:
    columns = []
    categories = form.categories or ((),) * len(spec.fields)
    for name, names in zip(spec.fields, categories, strict=True):
        scalar = ArrayInput((), form.dtype)
        values = table[name]
        if names:
            columns.append(codes_of(values, names))
            continue
        column = values if isinstance(values, np.ndarray) else _stack(values, scalar, name, table)
        _check_numbers(column, name, table)
        columns.append(column)
    return np.stack(columns, axis=1)


def _check_numbers(values: Any, name: str, table: Table) -> None:
    if values.dtype.kind not in "biuf":
        raise InputError(f"{table.source}: column {name!r} is of type {values.dtype}, not numbers")
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            raise InputError(
                f"{table.where(int(bad.argmax()))}: column {name!r} holds NaN or infinity "
                f"({int(bad.sum())} rows do); fill or drop them"
            )


CALLS: dict[str, Call] = {
    "single": Call(1, _encode_single, _run_text),
    "pair": Call(2, _encode_pair, _run_text),
    "two_encodings": Call(2, _encode_two, _run_two),
    "array": Call(0, _encode_array, _run_array),
    "embedded": Call(0, _encode_array, _run_embedded),
    "words": Call(1, encode_words, run_words),
    "language": Call(1, encode_prompts, run_language),
}
"""Call name -> how rows are encoded and the module is run:

* "single": one text;
* "pair": two texts as one input, joined by the tokenizer's own pair encoding;
* "two_encodings": the same encoder reads both texts; the head sees parts of `FEATURES`;
* "array": the module is called with one tensor: arrays, pictures, or columns of numbers;
* "embedded": a port turns such a tensor into `(B, L, width)`, which the module reads in place of
  the embeddings of its own tokens (`inputs_embeds`), every position of it;
* "words": one row of words; the head sees every position (kind "tokens");
* "language": one text; the module is a language model that gives logits (kind "text").
"""
