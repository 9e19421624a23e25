"""A run as flags, 1:1 with the fields of its config: YAML below, flags above.

A config holds members of families (`tuner: Tuner`, one of `TUNERS`). For flags, the family's field
becomes the chosen member, named by `--tuner NAME`, so that `--help` shows the flags that exist. A
group may be left out where the field's name is unique: `--steps` is `--train.steps`.
"""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections import abc
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml

from graftwork._errors import ConfigError
from graftwork.cli._help import notes_of, with_note
from graftwork.cli._shared import flags_of, unknown_flag


def flag_class(kinds: Sequence[type], chosen: dict[str, type], extra: type) -> type:
    """Return a dataclass of flags: the fields of `kinds` with the chosen members, and of `extra`.

    Arguments:
        kinds: the config, and what a recipe adds to it.
        chosen: field -> the concrete config it holds.
        extra: dataclass of flags that are no part of the config, such as `--json`.
    """
    extra_hints = typing.get_type_hints(extra, include_extras=True)
    hints: dict[str, Any] = {}
    notes = dict(notes_of(extra))
    for kind in kinds:
        hints |= typing.get_type_hints(kind, include_extras=True)
        notes |= notes_of(kind)
    plain = {name: _spelt_out(hint) for name, hint in (hints | chosen).items()}
    members = [
        (field.name, with_note(hint, notes.get(field.name)), _default_of(field))
        for group, known in (*((kind, plain) for kind in kinds), (extra, extra_hints))
        for field in dataclasses.fields(group)
        for hint in [known[field.name]]
    ]
    return dataclasses.make_dataclass("Flags", members, frozen=True, kw_only=True)


def value_of(words: Sequence[str], flag: str) -> str | None:
    """Return the value of `flag` in `words` (`--flag value` or `--flag=value`), the last one."""
    found = None
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def full_flags(words: Sequence[str], kind: type, prog: str, absent: Mapping[str, str]) -> list[str]:
    """Return `words` with each flag whose group was left out in full: `--steps` -> `--train.steps`.

    Arguments:
        words: as the user gave them.
        kind: dataclass of the flags that exist.
        prog: what the error calls the command.
        absent: flag without dashes that exists for other choices only -> what to say of it.

    Raises:
        ConfigError: the short flag could be several, or no flag ends in that name.
    """
    known = list(flags_of(kind))
    out = []
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not word.startswith("--") or flag in known or flag == "--help":
            out.append(word)
            continue
        leaves = [k for k in known if k.rpartition(".")[2] == flag[2:]]
        if len(leaves) > 1:
            raise ConfigError(f"{flag} could be {' or '.join(leaves)}: write it in full")
        if not leaves:
            if flag[2:] in absent:
                raise ConfigError(f"{flag}: {absent[flag[2:]]}")
            names = [*known, *(f"--{k.rpartition('.')[2]}" for k in known if "." in k)]
            raise unknown_flag(flag, names, prog)
        out.append(f"{leaves[0]}{equals}{value}")
    return out


def commented_yaml(plain: Mapping[str, Any], config: Any, indent: int = 0) -> str:
    """Return `plain`, the plain tree of `config`, as YAML with each field's docstring above it.

    Arguments:
        plain: nested dicts, as a YAML file holds them.
        config: the dataclass instance that `plain` was made from.
        indent: spaces before each line.
    """
    kind: type = type(config)
    notes, pad, lines = notes_of(kind), " " * indent, []
    for key, value in plain.items():
        if key in notes:
            wide = 98 - indent
            lines += [f"{pad}# {line}" for line in textwrap.wrap(notes[key], wide)]
        inner = getattr(config, key, None)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            lines += [f"{pad}{key}:", commented_yaml(value, inner, indent + 2)]
        else:
            text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=100)
            lines.append(textwrap.indent(text.rstrip("\n"), pad))
    return "\n".join(lines)


def named_choices() -> Any:
    """Return tyro's rule for fields that take a name or, in Python only, a function."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: Any) -> Any:
        members = typing.get_args(info.type)
        if not any(typing.get_origin(m) is abc.Callable for m in members):
            return None
        names = [n for m in members if typing.get_origin(m) is Literal for n in typing.get_args(m)]
        values = {str(n): n for n in names} | ({"None": None} if type(None) in members else {})
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(values) + "}",
            instance_from_str=lambda words: values[words[0]],
            is_instance=lambda value: value is None or isinstance(value, str) or callable(value),
            str_from_instance=lambda value: [str(value)],
            choices=tuple(values),
        )

    return registry


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    return dataclasses.field()


def _spelt_out(hint: Any) -> Any:
    """Return `hint` with flags like "--task.header False", which do not depend on the YAML."""
    import tyro

    return Annotated[hint, tyro.conf.FlagConversionOff]
