"""Help texts of flags: the docstring under each field of a dataclass, and what holds by default.

tyro alone takes these docstrings line by line as they stand in the source, and calls an empty
default "(default: )".
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any


@cache
def notes_of(kind: type) -> Mapping[str, str]:
    """Return field -> the docstring under it, as one line; empty without the source."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    body = typing.cast("ast.ClassDef", ast.parse(source).body[0]).body
    notes = {}
    for field, note in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
            notes[field.target.id] = " ".join(str(note.value.value).split())
    return notes


def with_note(hint: Any, note: str | None) -> Any:
    """Return the type `hint` with `note` as its help; "...; default: X" in it is shown as such."""
    import tyro

    if note is None:
        return hint

    # What a note says of the default is better than the value, such as None.
    text, stated, default = note.partition("; default: ")

    def by_default(value: str) -> str:
        shown = default.rstrip(".") or ("empty" if value in ("", "''") else value)
        return f"(default: {shown})"

    text = f"{text}." if stated else text
    return Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint=by_default)]


def noted_fields() -> Any:
    """Return tyro's rule that makes flags of a dataclass, with its notes as their help."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def rule(info: Any) -> Any:
        if not (dataclasses.is_dataclass(info.type) and isinstance(info.type, type)):
            return None
        hints = typing.get_type_hints(info.type, include_extras=True)
        notes = notes_of(info.type)
        return tyro.constructors.StructConstructorSpec(
            instantiate=info.type,
            fields=tuple(
                tyro.constructors.StructFieldSpec(
                    name=field.name,
                    type=with_note(hints[field.name], notes.get(field.name)),
                    default=getattr(info.default, field.name, _default_of(field)),
                )
                for field in dataclasses.fields(info.type)
            ),
        )

    return registry


def _default_of(field: dataclasses.Field[Any]) -> Any:
    import tyro

    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING_NONPROP
