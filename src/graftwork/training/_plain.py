"""Frozen dataclasses as plain YAML trees and back, 1:1 with their fields, strict both ways."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from graftwork._errors import ConfigError, GraftworkError, did_you_mean

T = TypeVar("T")
Families = Mapping[type, Mapping[str, type]]
"""Abstract config -> name -> concrete config, e.g. `{Tuner: TUNERS}`; the key is "name"."""

_SCALARS: dict[Any, str] = {str: "text", bool: "true or false", int: "a whole number"}


def to_plain(value: Any, families: Families, path: str = "") -> Any:
    """Return `value` as nested dicts, lists, numbers, texts, booleans and None.

    Raises:
        ConfigError: something that a file cannot hold, such as a function; names where.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Budget:
        ...     steps: int = 500
        >>> to_plain(Budget(), {})
        {'steps': 500}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {} if (name := _name_of(value, families)) is None else {"name": name}
        return named | {
            field.name: to_plain(getattr(value, field.name), families, _join(path, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, families, _join(path, k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, families, f"{path}[{i}]") for i, v in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ConfigError(f"{path}: a {type(value).__name__} cannot be written to a file")


def from_plain(kind: type[T], tree: Any, families: Families, path: str = "") -> T:
    """Return the config of type `kind` that `to_plain` would give as `tree`.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or an impossible value; names the path
            of the key, such as "train.steps", and the closest known key.
    """
    value: T = _read(kind, tree, families, path)
    return value


def _read(hint: Any, tree: Any, families: Families, path: str) -> Any:
    if hint is Any:
        return tree
    if isinstance(hint, type) and hint in families:
        return _read_member(hint, tree, families, path)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(typing.cast("type", hint), tree, families, path)
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _read(typing.get_args(hint)[0], tree, families, path)
    for known, reader in _READERS:
        if origin in known:
            return reader(hint, tree, families, path)
    return _read_scalar(hint, tree, path)


def _read_dataclass(kind: type, tree: Any, families: Families, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path or kind.__name__}: keys and values, not {tree!r:.80}")
    hints = typing.get_type_hints(kind, include_extras=True)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in tree:
        if key not in known:
            raise ConfigError(f"unknown key {_join(path, key)!r}{did_you_mean(key, known)}")
    for name, field in known.items():
        empty = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
        if empty and name not in tree:
            raise ConfigError(f"missing key {_join(path, name)!r}")
    values = {key: _read(hints[key], v, families, _join(path, key)) for key, v in tree.items()}
    try:
        return kind(**values)
    except GraftworkError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _read_member(family: type, tree: Any, families: Families, path: str) -> Any:
    members = families[family]
    if not isinstance(tree, Mapping) or "name" not in tree:
        raise ConfigError(f"missing key {_join(path, 'name')!r}{did_you_mean('', members)}")
    name = tree["name"]
    if name not in members:
        raise ConfigError(f"{_join(path, 'name')}: unknown {name!r}{did_you_mean(name, members)}")
    rest = {key: value for key, value in tree.items() if key != "name"}
    return _read_dataclass(members[name], rest, families, path)


def _read_union(hint: Any, tree: Any, families: Families, path: str) -> Any:
    complaints = []
    for choice in typing.get_args(hint):
        if typing.get_origin(choice) is Callable:  # has no form in a file
            continue
        if choice is type(None):
            if tree is None:
                return None
            continue
        try:
            return _read(choice, tree, families, path)
        except ConfigError as error:
            complaints.append(str(error))
    if not complaints:
        raise ConfigError(f"{path}: only empty (null), not {tree!r}")
    raise ConfigError(" or ".join(dict.fromkeys(complaints)))


def _read_literal(hint: Any, tree: Any, families: Families, path: str) -> Any:  # noqa: ARG001
    choices = typing.get_args(hint)
    if not any(tree == choice and type(tree) is type(choice) for choice in choices):
        raise ConfigError(f"{path}: unknown {tree!r}{did_you_mean(tree, choices)}")
    return tree


def _read_sequence(hint: Any, tree: Any, families: Families, path: str) -> Any:
    if not isinstance(tree, (list, tuple)):
        raise ConfigError(f"{path}: a list, not {tree!r}")
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and kinds[-1] is not Ellipsis:
        if len(kinds) != len(tree):
            raise ConfigError(f"{path}: a list of {len(kinds)}, not {list(tree)!r}")
    else:
        kinds = (kinds[0],) * len(tree)
    items = (
        _read(kind, item, families, f"{path}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, tree, strict=True))
    )
    return tuple(items)


def _read_mapping(hint: Any, tree: Any, families: Families, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: keys and values, not {tree!r:.80}")
    key_kind, kind = typing.get_args(hint)
    return {
        _read(key_kind, key, families, f"{path} key"): _read(
            kind, value, families, _join(path, key)
        )
        for key, value in tree.items()
    }


def _read_scalar(hint: Any, tree: Any, path: str) -> Any:
    if hint is Path and isinstance(tree, str):
        return Path(tree)
    if hint is float:
        return _read_float(tree, path)
    if hint in _SCALARS:
        if type(tree) is not hint:
            raise ConfigError(f"{path}: {_SCALARS[hint]}, not {tree!r}")
        return tree
    raise ConfigError(f"{path}: {tree!r} cannot be read from a file; set it in Python")


def _read_float(tree: Any, path: str) -> float:
    # YAML 1.1 reads 1e-3, without a dot, as text
    if isinstance(tree, (int, float, str)) and not isinstance(tree, bool):
        try:
            return float(tree)
        except ValueError:
            pass
    raise ConfigError(f"{path}: a number, not {tree!r}")


Reader = Callable[[Any, Any, Families, str], Any]
_READERS: tuple[tuple[tuple[Any, ...], Reader], ...] = (
    ((typing.Union, types.UnionType), _read_union),
    ((typing.Literal,), _read_literal),
    ((tuple, list, Sequence), _read_sequence),
    ((dict, Mapping), _read_mapping),
)


def _name_of(value: Any, families: Families) -> str | None:
    for members in families.values():
        for name, member in members.items():
            if type(value) is member:
                return name
    return None


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
