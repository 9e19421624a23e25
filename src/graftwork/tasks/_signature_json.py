"""A signature's JSON: strict checks of every key, and older versions made into the newest.

Version 1 had one target, whose mean and spread were numbers, and no input port. The key "language"
is written only where there is one, so that files of all other kinds stay as they were, and readers
from before it refuse only what they cannot use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from graftwork._errors import DeltaError, did_you_mean

VERSION = 2


def checked_signature(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a signature of any version as those of the newest.

    Raises:
        DeltaError: a key is unknown, missing or ill-typed, or the version is a newer one.
    """
    if not data:
        raise DeltaError("the delta has no signature: it is a bare weight difference")
    version = data.get("version")
    if version not in (1, VERSION):
        raise DeltaError(
            f"signature version {version!r} is not one of 1 to {VERSION}; a newer graftwork may "
            "read it"
        )
    filled = dict(data) if version == 1 else {"language": None, **data}
    values = _checked(filled, _KEYS_1 if version == 1 else _KEYS_2, "signature")
    del values["version"]
    return _upgraded(values) if version == 1 else values


def checked_array(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an `ArrayInput`.

    Raises:
        DeltaError: a key is unknown, missing or ill-typed.
    """
    # Files from before there were categories lack the key.
    values = _checked({"categories": (), **data}, _ARRAY_KEYS, "array")
    return {**values, "categories": tuple(tuple(names) for names in values["categories"])}


def checked_language(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `LanguageInput`.

    Raises:
        DeltaError: a key is unknown, missing or ill-typed.
    """
    return _checked(data, _LANGUAGE_KEYS, "language")


def written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a signature that go into its JSON."""
    return {k: v for k, v in values.items() if k != "language" or v is not None}


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of version 1 as those of version 2."""
    if values["kind"] not in ("classification", "regression"):
        raise DeltaError(f"signature: version 1 has no kind {values['kind']!r}")
    mean, std = values.pop("target_mean"), values.pop("target_std")
    spread = values["kind"] == "regression"
    target = values.pop("target")
    return {
        **values,
        "targets": (target,),
        "target_mean": (mean,) if spread else (),
        "target_std": (std,) if spread else (),
        "input": None,
        "language": None,
    }


def plain(value: Any) -> Any:
    """Return mappings, sequences and values as JSON ones."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


Check = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    # Bounded, since JSON may hold integers that no tensor, float or tokenizer takes.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(check(item) for item in value)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TEXT: Check = ("a string", _is_text)
_TEXTS: Check = ("a list of strings", _list_of(_is_text))
_NUMBER: Check = ("a finite number", _is_number)
_KEYS_2: dict[str, Check] = {
    "version": ("an integer", _is_int),
    "kind": _TEXT,
    "call": _TEXT,
    "fields": _TEXTS,
    "targets": _TEXTS,
    "labels": _TEXTS,
    "template": _TEXTS,
    "max_length": ("an integer or null", _or_none(_is_int)),
    "pooling": _TEXT,
    "normalise": ("true or false", lambda value: isinstance(value, bool)),
    "features": _TEXTS,
    "array": ("a mapping or null", _or_none(lambda value: isinstance(value, Mapping))),
    "head": ("a string or null", _or_none(_is_text)),
    "target_mean": ("a list of finite numbers", _list_of(_is_number)),
    "target_std": ("a list of finite numbers", _list_of(_is_number)),
    "input": ("a string or null", _or_none(_is_text)),
    "language": ("a mapping or null", _or_none(lambda value: isinstance(value, Mapping))),
}
_KEYS_1: dict[str, Check] = {
    **{k: v for k, v in _KEYS_2.items() if k not in ("targets", "input", "language")},
    "target": _TEXT,
    "target_mean": _NUMBER,
    "target_std": _NUMBER,
}
_ARRAY_KEYS: dict[str, Check] = {
    "shape": ("a list of positive integers", _list_of(lambda v: _is_int(v) and v > 0)),
    "dtype": _TEXT,
    "scale": _NUMBER,
    "mean": ("a list of numbers", _list_of(_is_number)),
    "std": ("a list of numbers", _list_of(_is_number)),
    "picture": _TEXT,
    "categories": ("a list of lists of strings", _list_of(_list_of(_is_text))),
}


_LANGUAGE_KEYS: dict[str, Check] = {
    "form": _TEXT,
    "end": _TEXT,
    "turns": _TEXT,
    "max_new_tokens": ("an integer", _is_int),
}


def _checked(data: Mapping[str, Any], keys: Mapping[str, Check], what: str) -> dict[str, Any]:
    for key in data:
        if key not in keys:
            raise DeltaError(f"{what}: unknown key {key!r}{did_you_mean(key, keys)}")
    for key, (kind, check) in keys.items():
        if key not in data:
            raise DeltaError(f"{what}: the key {key!r} is missing")
        if not check(data[key]):
            raise DeltaError(f"{what}: {key!r} must be {kind}, not {data[key]!r}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
