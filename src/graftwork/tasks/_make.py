"""From a configuration, or from tables of one's own, to a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork._errors import InputError, UnknownNameError, UnsupportedError
from graftwork.objectives import OBJECTIVES
from graftwork.tasks._array_readers import PICTURE_SUFFIXES
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._comparisons import (
    COMPARISON_LABELS,
    COMPARISON_SPLITS,
    comparison_capacity,
    comparisons,
)
from graftwork.tasks._config import TaskConfig
from graftwork.tasks._encoded import ArrayInput
from graftwork.tasks._faults import cannot_call, check_rest
from graftwork.tasks._learn import encode_rows
from graftwork.tasks._readers import read
from graftwork.tasks._sequence_evaluator import scorer_for
from graftwork.tasks._sequence_task import check_language_model, sequence_signature, with_form
from graftwork.tasks._signature import SEQUENCES, Signature
from graftwork.tasks._stream import TableStream, shard
from graftwork.tasks._table import Table
from graftwork.tasks._targets import (
    check_answers,
    check_label_sets,
    check_labelled,
    labels_of,
    labels_within,
    spread_of,
)
from graftwork.tasks._task import PortSpec, Task
from graftwork.tasks._texts import template_fields
from graftwork.tasks._word_labels import word_labels_of

TRAIN_ROWS, EVAL_ROWS = 20_000, 1_200
"""Rows of "comparisons" where none are stated."""

INPUT_PORT = "input"
"""Name of the port that embeds a task's arrays."""

OBJECTIVE_OF = {
    "classification": "cross_entropy",
    "regression": "squared_error",
    "binary": "binary_cross_entropy",
    "multilabel": "binary_cross_entropy",
    "tokens": "token_cross_entropy",
    "text": "token_cross_entropy",
}

LABELS_OF = {
    "classification": labels_of,
    "multilabel": labels_within,
    "tokens": word_labels_of,
}
"""Kind -> the labels that a column holds; other kinds have none to be found."""


def make_task(
    base: TaskBase,
    config: TaskConfig,
    *,
    batch_size: int = 32,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Task:
    """Return the task that a configuration describes.

    Args:
        base: tells tokenizer, pooling, length and, by one row sent through it, the head's width.
        config: the data and how they are used.
        batch_size: rows of a training batch over all processes together.
        seed: draws generated data, the rows kept of `max_rows`, and the order of training.
        rank: this process.
        world: number of processes.

    Raises:
        InputError: the data are wrong; names file, row, value and fix.
        UnknownNameError: a column or label does not exist.
        UnsupportedError: the base cannot be called with these inputs.
    """
    config, tables = read_tables(config, seed)
    task = task_from_tables(base, tables, config, batch_size=batch_size, seed=seed)
    shard(task.streams, rank, world)
    return task


def task_from_tables(
    base: TaskBase,
    tables: Mapping[str, Table],
    config: TaskConfig | None = None,
    *,
    batch_size: int = 32,
    seed: int = 0,
    input: PortSpec | None = None,
) -> Task:
    """Return a task over tables of one's own; the fields of `config` about files are not read.

    Args:
        base: as in `make_task`.
        tables: stream name -> rows; "train" is learnt from, in shuffled order.
        config: columns, call, head and metrics; None: the defaults.
        batch_size: rows of a training batch over all processes together.
        seed: of the order of training. For several processes see `shard`.
        input: module that embeds the rows' arrays for the base, `(B, ...)` to `(B, L, width)`; it
            becomes the port "input", and the call "embedded".

    Raises:
        InputError: the data are wrong; names row, value and fix.
        UnknownNameError: there is no table "train", or a column or label does not exist.
        UnsupportedError: the base cannot be called with these inputs.

    Example:
        >>> from graftwork.bases import load
        >>> base = load(torch.nn.Linear(2, 4))
        >>> x = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
        >>> table = Table({"x": x, "label": ["up", "down", "up", "down"]})
        >>> task = task_from_tables(base, {"train": table, "eval": table}, batch_size=2)
        >>> task.signature.labels, task.signature.call, task.ports["head"].config["in_features"]
        (('down', 'up'), 'array', 4)
    """
    config = config or TaskConfig()
    if "train" not in tables:
        raise UnknownNameError("table", "train", tables)
    config = with_form(tables["train"], config)
    if input is not None and config.kind in SEQUENCES:
        raise InputError(f"kind {config.kind!r} reads words or text, so it has no input port")
    for table in tables.values():
        for name in config.targets:
            # A stream may lack targets (pre-training); these objectives may not.
            table[name]
    signature = signature_for(base, tables["train"], config, embedded=input is not None)
    if len(config.targets) > 1:
        check_labelled(tables["train"], config.targets)
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
            together=config.together,
        )
        for name, table in tables.items()
    }
    return Task(
        signature=signature,
        streams=streams,
        evaluator=scorer_for(signature, config.metrics),
        objectives={"task": OBJECTIVES[OBJECTIVE_OF[signature.kind]]},
        ports=_ports(base, signature, config, tables["train"], input),
    )


def read_tables(config: TaskConfig, seed: int) -> tuple[TaskConfig, dict[str, Table]]:
    """Return the tables that a configuration names, and it with what the data say filled in.

    Tables are "train", "eval" and, for "comparisons", "eval-words" and "eval-length".

    Raises:
        InputError: a file is absent or wrong.
        UnknownNameError: a column does not exist.
    """
    if config.data == "comparisons":
        return _read_comparisons(config, seed)
    whole = _read(config.data, config)
    if config.eval_data is not None:
        train, held = whole, _read(config.eval_data, config)
    else:
        if config.kind in LABELS_OF and not config.labels:
            # Of all rows, since a rare label may fall into one part only.
            config = replace(config, labels=LABELS_OF[config.kind](whole, config.targets[0]))
        train, held = whole.split(config.eval_share, seed=0)
        if config.kind not in SEQUENCES:
            check_rest(whole, train, config)
    return config, {
        "train": train.sample(config.max_rows, seed),
        "eval": held.sample(config.eval_rows, 0),
    }


def _read_comparisons(config: TaskConfig, seed: int) -> tuple[TaskConfig, dict[str, Table]]:
    if config.eval_data is not None:
        raise InputError("data 'comparisons' brings its own splits; leave eval_data out")
    tables = {}
    for split in COMPARISON_SPLITS:
        rows = config.max_rows if split == "train" else config.eval_rows
        if rows is None:
            most = comparison_capacity(split, config.phrases)
            rows = min(TRAIN_ROWS if split == "train" else EVAL_ROWS, most)
        tables[split] = comparisons(split, rows, seed=seed, phrases=config.phrases)
    filled = replace(
        config,
        inputs=config.inputs or ("premise", "hypothesis"),
        labels=config.labels or COMPARISON_LABELS,
        group=config.group or "type",
        together=config.together or "premise",
    )
    return filled, tables


def _read(data: str, config: TaskConfig) -> Table:
    return read(
        data,
        columns=config.columns or None,
        format=config.format,
        header=config.header,
        quoting=config.quoting,
        delimiter=config.delimiter,
    )


def signature_for(
    base: TaskBase, train: Table, config: TaskConfig, *, embedded: bool = False
) -> Signature:
    """Return the signature that a configuration gives for the table that is learnt from.

    Args:
        base: tells pooling and length.
        train: tells columns, labels, and the spread of values.
        config: what the user states.
        embedded: whether the port "input" embeds the rows' arrays.

    Raises:
        InputError: the data are wrong.
        UnknownNameError: a column does not exist.
    """
    if config.kind in SEQUENCES:
        return sequence_signature(base, train, config)
    if embedded and config.call not in (None, "array"):
        raise InputError(f"an input port reads arrays, so the call cannot be {config.call!r}")
    fields = _fields(train, config)
    array = _array_input(train, fields, config, wanted=embedded or config.call == "array")
    call = config.call or ("array" if array else _text_call(fields, config))
    labels, mean, std = _target_facts(train, config)
    pooling = "none" if call == "array" and not embedded else "mean"
    return Signature(
        kind=config.kind,
        call="embedded" if embedded else call,
        fields=fields,
        targets=config.targets,
        labels=labels,
        template=config.template,
        max_length=None if array else config.max_length or base.max_length,
        pooling=config.pooling or base.pooling or pooling,
        normalise=config.normalise,
        features=config.features,
        array=array,
        head="head" if config.head else None,
        target_mean=mean,
        target_std=std,
        input=INPUT_PORT if embedded else None,
    )


def _target_facts(
    train: Table, config: TaskConfig
) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Return labels, means and spreads; what the kind of task does not have is empty."""
    targets = config.targets
    several = len(targets) > 1
    if config.kind == "regression":
        mean, std = zip(*(spread_of(train, t, missing=several) for t in targets), strict=True)
        return (), mean, std
    if config.kind == "binary":
        for name in targets:
            check_answers(train, name, config.labels, missing=several)
        return config.labels, (), ()
    if config.kind == "multilabel":
        return check_label_sets(train, targets[0], config.labels), (), ()
    labels = labels_of(train, targets[0])
    return config.labels or labels, (), ()


def _fields(table: Table, config: TaskConfig) -> tuple[str, ...]:
    if config.inputs:
        for name in config.inputs:
            table[name]
        return config.inputs
    if config.template:
        names = [name for template in config.template for name in template_fields(template)]
        return tuple(dict.fromkeys(names))
    others = {config.group, *config.targets}
    rest = [name for name in table.columns if name not in others]
    pictures = [name for name in rest if len(table) and isinstance(table[name][0], bytes)]
    return tuple(pictures or rest)


def _text_call(fields: tuple[str, ...], config: TaskConfig) -> str:
    texts = len(config.template) or len(fields)
    if texts not in (1, 2):
        raise InputError(
            f"which columns are the input? {list(fields)} could be; name one or two by `inputs`, "
            "join several by `template`, or use the call 'array' for columns of numbers"
        )
    return "single" if texts == 1 else "two_encodings"


def _array_input(
    table: Table, fields: tuple[str, ...], config: TaskConfig, *, wanted: bool
) -> ArrayInput | None:
    """Return the preprocessing of an array column; None where the inputs are texts."""
    if config.call not in (None, "array") or not fields:
        return None
    values = table[fields[0]]
    first = values[0] if len(values) else None
    if isinstance(first, bytes) or (wanted and _is_file_name(first)):
        channels = 3 if config.image_mode == "RGB" else 1
        return ArrayInput(
            shape=(channels, *config.image_size),
            scale=1 / 255,
            mean=config.mean,
            std=config.std,
            picture=config.image_mode,
        )
    if isinstance(first, list | tuple | np.ndarray | Tensor):
        shape = tuple(np.shape(first))
    elif wanted:
        shape = (len(fields),)
    else:
        return None
    if config.array_ids:
        return ArrayInput(shape, "int64")
    return ArrayInput(shape, mean=config.mean, std=config.std)


def _is_file_name(value: Any) -> bool:
    if isinstance(value, Path):
        return True
    return isinstance(value, str) and Path(value).suffix.lower() in PICTURE_SUFFIXES


def _ports(
    base: TaskBase,
    signature: Signature,
    config: TaskConfig,
    train: Table,
    input: PortSpec | None,
) -> dict[str, PortSpec]:
    ports = {} if input is None else {INPUT_PORT: input}
    width = _width(base, signature, train, ports)
    if signature.kind == "text":
        check_language_model(base, signature)
        return ports
    if signature.head is None:
        if width != signature.outputs:
            raise InputError(
                f"the base gives {width} output(s) a row, but the task has {signature.outputs}; "
                "add a head (`head`)"
            )
        return ports
    head: dict[str, Any] = {
        "in_features": width,
        "out_features": signature.outputs,
        "hidden": config.head_hidden,
        "activation": config.head_activation,
        "dropout": config.head_dropout,
    }
    return {**ports, signature.head: PortSpec("head", head)}


def _width(
    base: TaskBase, signature: Signature, train: Table, specs: Mapping[str, PortSpec]
) -> int:
    """Return the width of features (or outputs), found by sending one row through the base."""
    # Rows to learn from may be longer than those to answer, whose end would have no room.
    encoded = encode_rows(signature, base, train.take([0])).encoded
    device = next((p.device for p in base.model.parameters()), torch.device("cpu"))
    inputs = {k: v.to(device) for k, v in encoded.collate(np.zeros(1, np.int64)).items()}
    with torch.random.fork_rng(devices=[]):
        # These modules only tell the width: what training draws must not depend on them.
        ports = {name: spec.build().eval().to(device) for name, spec in specs.items()}
    try:
        with torch.no_grad():
            features = signature.features_of(base.model, ports, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UnsupportedError(cannot_call(base, signature, train, inputs, error)) from error
    if features.dim() != (3 if signature.kind in SEQUENCES else 2):
        raise UnsupportedError(
            f"the base gave {tuple(features.shape)} for one row; (1, features) is needed: choose "
            "a pooling"
        )
    return int(features.shape[-1])
