"""What `import` asks of the files that it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork._errors import InputError
from graftwork.cli._shared import existing


def detect(source: Path) -> str:
    """Return the format of a file or folder: peft, adapterhub or loralib.

    Raises:
        InputError: nothing in it says what it is.
    """
    if source.is_file():
        return "loralib"
    if (source / "delta.safetensors").is_file():
        raise InputError(
            f"{source} holds a delta already: use {source / 'delta.safetensors'} as it is"
        )
    config = source / "adapter_config.json"
    if config.is_file():
        try:
            found = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            return "peft"
        hub = isinstance(found, dict) and "peft_type" not in found and "config" in found
        return "adapterhub" if hub else "peft"
    inside = sorted(p.parent.name for p in source.glob("*/adapter_config.json"))
    hint = f"; it holds the adapters {', '.join(inside)}: name one of them" if inside else ""
    raise InputError(f"{source} has no adapter_config.json{hint}")


def fetched(source: str) -> Path:
    """Return `source` where it is on disk, else the folder of the hub repository of that name.

    Raises:
        InputError: it is neither.
        StorageError: the repository cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return existing(path, "adapter")
    from graftwork.formats import pull

    return pull(source)


def read_signature(path: Path | None) -> Mapping[str, Any] | None:
    """Return the JSON of a signature, checked.

    Raises:
        InputError: the file is missing or no JSON.
        DeltaError: a key is unknown, missing or ill-typed.
    """
    if path is None:
        return None
    from graftwork.tasks import Signature

    try:
        found = json.loads(existing(path, "signature").read_text(encoding="utf-8"))
    except ValueError as cause:
        raise InputError(f"signature {str(path)!r} is not JSON: {cause}") from None
    if not isinstance(found, dict):
        raise InputError(f"signature {str(path)!r} holds no JSON object")
    return Signature.from_json(found).to_json()
