"""YAML text <-> plain trees; a key written twice is an error, not the last one wins."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from graftwork._errors import ConfigError


def dump_yaml(tree: Any) -> str:
    """Return `tree` as YAML text, keys in their order.

    Example:
        >>> print(dump_yaml({"train": {"steps": 500}, "targets": None}), end="")
        train:
          steps: 500
        targets: null
    """
    return yaml.dump(tree, Dumper=_Exact, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(path: Path) -> Any:
    """Return the plain tree of a YAML file.

    Raises:
        ConfigError: as `parse_yaml`, or the file cannot be read; names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_yaml(text: str) -> Any:
    """Return the plain tree of YAML `text`.

    Raises:
        ConfigError: text that is not YAML, or a key that is written twice; names the line.
    """
    try:
        return yaml.load(text, Loader=_Strict)
    except yaml.MarkedYAMLError as error:
        what = ", ".join(part for part in (error.context, error.problem) if part)
        where = _place(error.problem_mark or error.context_mark)
        raise ConfigError(f"{where}: not valid YAML: {what}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"a character that YAML has not, {chr(error.character)!r}"
        raise ConfigError(f"line {line}: not valid YAML: {what}") from error
    except ValueError as error:  # what looks like a date and is none
        raise ConfigError(f"not valid YAML: {error}; write texts in quotes") from error


def _place(mark: yaml.Mark | None) -> str:
    return "end of the text" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"


_FOLDED = "\x85\u2028\u2029\ufeff"
"""Characters that PyYAML writes plain and then reads as line breaks."""


class _Exact(yaml.SafeDumper):
    """The safe dumper, for texts that come back as they were."""


def _represent_text(dumper: _Exact, text: str) -> yaml.ScalarNode:
    style = '"' if any(c in _FOLDED for c in text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Exact.add_representer(str, _represent_text)


class _Strict(yaml.SafeLoader):
    """The safe loader without silent overwriting."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"{_place(key_node.start_mark)}: a key is text, not {key!r:.80}")
            if key in seen:
                raise ConfigError(f"{_place(key_node.start_mark)}: key {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)
