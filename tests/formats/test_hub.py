"""The hub, by the layout of its local cache: nothing here reaches a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants

from graftwork.bases import load
from graftwork.deltas import content_hash, dumps
from graftwork.errors import StorageError
from graftwork.formats import PushOptions, export_peft, import_peft, pull, pull_delta, push
from tests.formats.oracles import MODELS
from tests.formats.test_peft_export import lora_like

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def put(cache: Path, repo: str, files: Path) -> None:
    """Lay files out as huggingface_hub's cache does: blobs, a ref, a snapshot of links."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(files.iterdir())):
        blob = root / "blobs" / f"{index:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)


class Api:
    """What `push` uses of huggingface_hub.HfApi, writing to a folder."""

    calls: ClassVar[list[dict[str, object]]] = []
    to = Path()

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        Api.calls.append({"repo": repo, "private": private, "exist_ok": exist_ok})

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        shutil.copytree(folder_path, Api.to)
        return f"https://hub/{repo_id}/{commit_message}"


def test_push_then_pull_gives_the_same_bytes(tmp_path, cache, monkeypatch):
    base = load(MODELS["bert"].build())
    delta = lora_like(base)
    Api.calls, Api.to = [], tmp_path / "uploaded"
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    options = PushOptions(base_name="org/tiny-bert", message="first")
    assert push(delta, "me/task", options) == "https://hub/me/task/first"
    assert Api.calls == [{"repo": "me/task", "private": True, "exist_ok": True}]
    assert sorted(f.name for f in Api.to.iterdir()) == ["README.md", "delta.safetensors"]
    assert 'base_model: "org/tiny-bert"' in (Api.to / "README.md").read_text()
    put(cache, "me/task", Api.to)
    again = pull_delta("me/task")
    assert dumps(again) == dumps(delta)
    assert content_hash(pull_delta("me/task", COMMIT)) == content_hash(delta)


def test_an_adapter_on_the_hub_is_pulled_and_imported(tmp_path, cache):
    base = load(MODELS["bert"].build())
    delta = lora_like(base)
    export_peft(delta, base, tmp_path / "peft")
    put(cache, "me/adapter", tmp_path / "peft")
    imported = import_peft(pull("me/adapter"), base)
    assert set(imported.updates) == set(delta.updates)
    with pytest.raises(StorageError, match="holds a PEFT adapter, not a delta; import it"):
        pull_delta("me/adapter")


def test_what_is_not_there_is_named(tmp_path, cache, monkeypatch):
    with pytest.raises(StorageError, match="cannot fetch 'me/nowhere'"):
        pull_delta("me/nowhere")
    with pytest.raises(StorageError, match="cannot fetch 'not a name!'"):
        pull("not a name!")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "README.md").write_text("a model")
    put(cache, "me/model", tmp_path / "files")
    with pytest.raises(
        StorageError, match=r"has no delta\.safetensors and no adapter_config\.json"
    ):
        pull("me/model")

    class Refusing(Api):
        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
            raise OSError("401: not logged in")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    delta = lora_like(load(MODELS["bert"].build()))
    with pytest.raises(StorageError, match="cannot push to 'me/task': 401: not logged in"):
        push(delta, "me/task")
