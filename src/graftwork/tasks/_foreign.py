"""Tasks on foreign data: tables, series, fields, ids, read by a text base through an input port."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from graftwork._errors import ConfigError, InputError, UnsupportedError
from graftwork.nn import patch_of
from graftwork.objectives import OBJECTIVES
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._categories import is_number, names_of
from graftwork.tasks._class_stream import ClassStream
from graftwork.tasks._config import TaskConfig
from graftwork.tasks._encoded import ArrayInput
from graftwork.tasks._evaluator import Evaluator
from graftwork.tasks._make import INPUT_PORT, OBJECTIVE_OF, read_tables, signature_for
from graftwork.tasks._pseudo_labels import pseudo_labels
from graftwork.tasks._signature import Signature
from graftwork.tasks._stream import TableStream
from graftwork.tasks._table import Table
from graftwork.tasks._targets import encode_targets
from graftwork.tasks._task import PortSpec, Task


@dataclass(frozen=True, kw_only=True)
class ForeignInput:
    """How rows of foreign data become positions of a base.

    Raises:
        ConfigError: a value is out of range.
    """

    positions: int = 16
    """Most positions a row becomes. Time grows with them; Shen et al. use 4 for tables."""
    layout: Literal["series", "field"] | None = None
    """What arrays with two axes are: channels of a series, or one field; None: a field."""

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise ConfigError(f"positions: 1 or more, not {self.positions}")
        if self.layout not in (None, "series", "field"):
            raise ConfigError(f"layout: 'series', 'field' or none, not {self.layout!r}")


def foreign_task(
    base: TaskBase,
    config: TaskConfig,
    foreign: ForeignInput | None = None,
    *,
    tables: Mapping[str, Table] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Task:
    """Return a task whose port "input" embeds foreign rows for a base that reads text.

    Which port it is, the training rows tell: columns of numbers and names become "columns" (numbers
    are standardised, a column with any value that is no number holds categories), arrays "patches"
    and ids "codes". All of it is kept in the signature, so that a prediction reads raw rows.

    Args:
        base: its model takes `inputs_embeds` and has `get_input_embeddings`.
        config: data, label, kind, head and metrics.
        foreign: positions and layout.
        tables: stream name -> rows, in place of the files that `config` names.
        batch_size: rows of a training batch.
        seed: of the order of training.

    Raises:
        InputError: the data are wrong; names row, value and fix.
        UnknownNameError: a column or label does not exist.
        UnsupportedError: the base takes no `inputs_embeds`.

    Example:
        >>> from graftwork.bases import load
        >>> base = load("minilm")  # doctest: +SKIP
        >>> rows = {"age": [31, 64], "city": ["Bern", "Oslo"], "label": ["no", "yes"]}
        >>> tables = {"train": Table(rows), "eval": Table(rows)}
        >>> foreign_task(base, TaskConfig(), tables=tables).ports["input"].config  # doctest: +SKIP
        {'categories': [0, 3], 'width': 384, 'tokens': 2}
    """
    foreign = foreign or ForeignInput()
    if tables is None:
        config, tables = read_tables(config, seed)
    train = tables["train"]
    signature = signature_for(base, train, config, embedded=True)
    assert signature.array is not None
    form, port = _embedding(signature, train, foreign, width_of(base))
    signature = replace(signature, array=form)
    if signature.call != "embedded" or signature.head is None:
        raise ConfigError("a task on foreign data needs a head of its own: leave `head` on")
    streams = {
        name: TableStream(
            table=table,
            signature=signature,
            base=base,
            name=name,
            batch_size=batch_size,
            seed=seed,
            shuffle=name == "train",
            group=config.group,
        )
        for name, table in tables.items()
    }
    head = {
        "in_features": _features(base, signature, port, streams["train"]),
        "out_features": signature.outputs,
        "hidden": config.head_hidden,
        "activation": config.head_activation,
        "dropout": config.head_dropout,
    }
    return Task(
        signature=signature,
        streams=streams,
        evaluator=Evaluator(signature, config.metrics),
        objectives={"task": OBJECTIVES[OBJECTIVE_OF[signature.kind]]},
        ports={INPUT_PORT: port, signature.head: PortSpec("head", head)},
    )


def width_of(base: TaskBase) -> int:
    """Return the width of a base's input embeddings.

    Raises:
        UnsupportedError: its model has none.
    """
    getter = getattr(base.model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    weight = getattr(found, "weight", None)
    if not isinstance(weight, Tensor):
        raise UnsupportedError(
            "foreign data need a base whose model has get_input_embeddings() and takes "
            f"inputs_embeds, as transformers' text models do; this is a {type(base.model).__name__}"
        )
    return int(weight.shape[1])


def class_stream(
    base: TaskBase, task: Task, *, rows: int = 256, clusters: int = 10, seed: int = 0
) -> ClassStream:
    """Return the stream "align" of a task: its training rows, every class in each batch.

    Args:
        base: that of the task.
        task: its stream "train" is a table's.
        rows: of a batch.
        clusters: classes that targets of numbers are put into, by k-means.
        seed: of the order, and of the clusters.

    Raises:
        UnsupportedError: the training stream is no table's.
    """
    stream, signature = task.streams["train"], task.signature
    if not isinstance(stream, TableStream) or signature is None:
        raise UnsupportedError("alignment needs a task whose training stream is a table's")
    targets = encode_targets(stream.table, signature)
    if targets is None:
        raise InputError("alignment needs targets, but the training rows have none")
    if signature.kind == "classification":
        labels = targets.numpy()
    else:
        known = torch.nan_to_num(targets.double(), nan=0.0)
        labels = pseudo_labels(known.numpy(), clusters, seed=seed)
    return ClassStream(
        table=stream.table,
        signature=signature,
        base=base,
        labels=labels,
        rows=max(rows, len(np.unique(labels))),
        seed=seed,
    )


def _embedding(
    signature: Signature, train: Table, foreign: ForeignInput, width: int
) -> tuple[ArrayInput, PortSpec]:
    """Return the preprocessing of a row and the port that embeds it."""
    form = signature.array
    assert form is not None
    columns = form.shape == (len(signature.fields),) and np.ndim(train[signature.fields[0]][0]) == 0
    if columns and not form.picture:
        return _columns(signature.fields, train, foreign, width)
    if form.dtype == "int64":
        return form, _codes(form, train[signature.fields[0]], foreign, width)
    return _standardised(form, train, signature.fields[0]), _patches(form, foreign, width)


def _columns(
    fields: tuple[str, ...], train: Table, foreign: ForeignInput, width: int
) -> tuple[ArrayInput, PortSpec]:
    names, means, spreads = [], [], []
    for field in fields:
        values = train[field]
        if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
            numbers = np.asarray(values, dtype=np.float64)
        elif all(is_number(value) for value in values):
            numbers = np.asarray([float(value) for value in values])
        else:
            names.append(names_of(values))
            means.append(0.0)
            spreads.append(1.0)
            continue
        names.append(())
        means.append(float(np.nanmean(numbers)))
        spreads.append(float(np.nanstd(numbers)) or 1.0)
    form = ArrayInput(
        (len(fields),), mean=tuple(means), std=tuple(spreads), categories=tuple(names)
    )
    config = {
        "categories": [len(known) + 1 if known else 0 for known in names],
        "width": width,
        "tokens": min(foreign.positions, len(fields)),
    }
    return form, PortSpec("columns", config)


def _codes(form: ArrayInput, values: Any, foreign: ForeignInput, width: int) -> PortSpec:
    if len(form.shape) != 1:
        raise InputError(f"ids must be a sequence a row, not arrays of shape {form.shape}")
    count = int(max(np.max(row) for row in values)) + 1
    patch = patch_of(form.shape[0], foreign.positions)
    return PortSpec("codes", {"count": count, "width": width, "patch": patch})


def _standardised(form: ArrayInput, train: Table, field: str) -> ArrayInput:
    """Return `form` with the mean and spread of the training rows, where it has none of its own."""
    if form.picture or form.mean != (0.0,) or form.std != (1.0,):
        return form
    values = np.stack([np.asarray(row, dtype=np.float64) for row in train[field]])
    return replace(form, mean=(float(values.mean()),), std=(float(values.std()) or 1.0,))


def _patches(form: ArrayInput, foreign: ForeignInput, width: int) -> PortSpec:
    shape = form.shape
    if len(shape) == 2:
        shape = shape if foreign.layout == "series" else (1, *shape)
    elif len(shape) == 1:
        shape = (1, *shape)
    channels, *sizes = shape
    if len(sizes) not in (1, 2):
        raise InputError(
            f"rows of shape {form.shape} are no series (channels, length) and no field (channels, "
            "height, width)"
        )
    most = foreign.positions if len(sizes) == 1 else max(1, math.isqrt(foreign.positions))
    patch = [patch_of(size, most) for size in sizes]
    return PortSpec("patches", {"channels": channels, "patch": patch, "width": width})


def _features(base: TaskBase, signature: Signature, port: PortSpec, stream: TableStream) -> int:
    """Return the width of pooled features, found by sending one row through port and base."""
    device = next(base.model.parameters()).device
    row = next(iter(stream.once(1))).to(device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        ports = {INPUT_PORT: port.build().eval().to(device)}
        try:
            return int(signature.features_of(base.model, ports, row.inputs).shape[1])
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UnsupportedError(f"the base takes no inputs_embeds: {error}") from error
