"""Tiny bases in folders, loaded once: an encoder for words, decoders for texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.tasks.sequences import write_bert, write_gpt2, write_llama

from graftwork.bases import Base, load, load_language_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    root = tmp_path_factory.mktemp("sequences")
    writers = {
        "bert": write_bert,
        "gpt2": write_gpt2,
        "taught": partial(write_gpt2, taught=True),
        "llama": write_llama,
    }

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else writers[name](path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTWORK_CACHE", str(root / "cache"))
        yield folder


@pytest.fixture(scope="session")
def words_base(folders: Callable[[str], Path]) -> Base:
    return load(folders("bert"))


@pytest.fixture(scope="session")
def gpt2(folders: Callable[[str], Path]) -> Base:
    return load_language_model(folders("gpt2"))


@pytest.fixture(scope="session")
def taught(folders: Callable[[str], Path]) -> Base:
    return load_language_model(folders("taught"))


@pytest.fixture(scope="session")
def llama(folders: Callable[[str], Path]) -> Base:
    return load_language_model(folders("llama"))
