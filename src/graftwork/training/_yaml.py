"""YAML text <-> plain trees; a key written twice is an error, not the last one wins."""

from __future__ import annotations

from collections.abc import Hashable
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


def parse_yaml(text: str) -> Any:
    """Return the plain tree of YAML `text`.

    Raises:
        ConfigError: text that is not YAML, or a key that is written twice; names the line.
    """
    try:
        return yaml.load(text, Loader=_Strict)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error


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
            if isinstance(key, Hashable) and key in seen:
                raise ConfigError(f"key {key!r} is written twice{key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)
