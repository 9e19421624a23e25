"""Deltas on the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork._errors import StorageError
from graftwork.deltas import Delta, load, save
from graftwork.formats._card import CARD, model_card

DELTA = "delta.safetensors"
_PATTERNS = (DELTA, CARD, "adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class PushOptions:
    """How a delta is pushed."""

    base_name: str | None = None
    """The base's hub id for the card; None: what the delta's provenance says."""
    private: bool = True
    """Whether a new repository is private; nothing is made public unless asked for."""
    message: str = "Upload a delta with graftwork"
    """Message of the commit."""


def push(delta: Delta, repo: str, options: PushOptions | None = None) -> str:
    """Upload a delta and its card to a hub repository, and return its address.

    The login is huggingface_hub's own (`hf auth login`, or HF_TOKEN).

    Arguments:
        delta: any delta.
        repo: "user/name"; made where it does not exist.
        options: see `PushOptions`.

    Raises:
        StorageError: the hub cannot be reached or refuses; says why.
    """
    import huggingface_hub

    options = options or PushOptions()
    base = options.base_name or str(delta.provenance.get("base") or "unknown")
    api: Any = huggingface_hub.HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(delta, Path(folder) / DELTA)
        card = model_card(delta, base, name=repo.rpartition("/")[2])
        (Path(folder) / CARD).write_text(card, encoding="utf-8")
        try:
            api.create_repo(repo, private=options.private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=options.message
            )
        except _errors() as cause:
            raise StorageError(f"cannot push to {repo!r}: {_reason(cause)}; {_HINT}") from cause
    return str(getattr(done, "commit_url", done))


def pull(repo: str, revision: str | None = None) -> Path:
    """Return the local folder of a hub repository's delta or PEFT adapter.

    Only the delta, the adapter's two files and the card are fetched; what lies in huggingface_hub's
    cache already is taken from there, so a pulled delta works offline.

    Arguments:
        repo: "user/name".
        revision: branch, tag or commit; None: the main branch. Name a commit where the very same
            bytes matter.

    Raises:
        StorageError: the repository cannot be fetched, or has neither a delta nor an adapter.
    """
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(_PATTERNS)
        )
    except _errors() as cause:
        raise StorageError(f"cannot fetch {repo!r}: {_reason(cause)}; {_HINT}") from cause
    folder = Path(found)
    if not any((folder / name).exists() for name in (DELTA, "adapter_config.json")):
        raise StorageError(
            f"{repo!r} has no {DELTA} and no adapter_config.json; is it a merged model? Load it as "
            "a base"
        )
    return folder


def pull_delta(repo: str, revision: str | None = None) -> Delta:
    """Return the delta in a hub repository; see `pull`.

    Raises:
        StorageError: the repository cannot be fetched, or holds a PEFT adapter instead.
        DeltaFileError: its file is damaged.
    """
    folder = pull(repo, revision)
    if not (folder / DELTA).exists():
        raise StorageError(
            f"{repo!r} holds a PEFT adapter, not a delta; import it: "
            f"import_peft(pull({repo!r}), base)"
        )
    return load(folder / DELTA)


_HINT = "check the name, the network and the login (`hf auth login`)"


def _errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    return (OSError, ValueError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled)


def _reason(cause: Exception) -> str:
    return str(cause).strip().partition("\n")[0]
