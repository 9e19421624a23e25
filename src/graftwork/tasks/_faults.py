"""What to say where the data do not go with the base, or with how they are divided."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from graftwork._errors import InputError
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._config import TaskConfig
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table
from graftwork.tasks._targets import label_text


def check_rest(whole: Table, train: Table, config: TaskConfig) -> None:
    """Check that what is not held out still has something to tell apart, where the data had it.

    Raises:
        InputError: all rows left have one label or value; tells the numbers of rows.
    """
    if config.label not in whole:
        return
    left, all_of_them = (
        {label_text(value) for value in table[config.label]} for table in (train, whole)
    )
    if len(left) > 1 or len(all_of_them) < 2:
        return
    raise InputError(
        f"{whole.source} has {len(whole)} rows; {len(whole) - len(train)} held out to evaluate on "
        f"(eval_share {config.eval_share}) leave {len(train)} to learn from, all with "
        f"{left.pop()!r} in column {config.label!r}: give more rows, or other rows to evaluate on "
        "by eval_data (--eval-data)"
    )


def cannot_call(
    base: TaskBase, signature: Signature, table: Table, inputs: Mapping[str, Tensor], error: object
) -> str:
    """Return what to say where the base fails on `inputs` by `error`: the likely cause, the fix."""
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    failed = f"the base cannot be called with {shapes} (call {signature.call!r}): {error}"
    form = signature.array
    if signature.call != "array" or form is None:
        return failed
    if base.tokenizer is None:
        size = " x ".join(map(str, form.shape[1:]))
        fix = f"; pictures are resized to {size}: set image_size (--image-size) to the base's"
        return failed + fix if form.picture else failed
    what = "pictures" if form.picture else f"arrays of shape {form.shape}"
    other = "for pictures, such as a vision transformer" if form.picture else "that takes them"
    return f"the base reads text, but {table.source} holds {what}; give texts, or a base {other}"
