"""A small corpus, its tokenizer, and an untrained base over them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from graftwork import bases
from graftwork.domains.molecules import smiles_tokenizer, vocabulary_of
from graftwork.models import MolformerConfig

# without the extra `molecules` there is nothing to test
collect_ignore_glob = [] if importlib.util.find_spec("rdkit") else ["test_*.py"]

SMILES = (
    "CCO",
    "CC(=O)O",
    "c1ccccc1",
    "Cc1ccccc1O",
    "CC(C)NCC(O)COc1cccc2ccccc12",
    "C1CCNCC1",
    "O=C(O)c1ccccc1OC(C)=O",
    "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "ClCCl",
    "BrCCBr",
    "C[N+](C)(C)C",
    "CS(=O)(=O)c1ccc(F)cc1",
)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of public sets; the test is left out where there is none."""
    folder = Path(os.environ.get("GRAFTWORK_DATA", "../shared/data")) / "molformer"
    if not folder.is_dir():
        pytest.skip("needs the data folder")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> object:
    return smiles_tokenizer(vocabulary_of(SMILES))


@pytest.fixture
def config(tokenizer: object) -> MolformerConfig:
    return MolformerConfig(vocab_size=len(tokenizer), width=16, layers=2, heads=2, features=16)


@pytest.fixture
def base(tokenizer: object, config: MolformerConfig, tmp_path: Path) -> bases.Base:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    bases.save(
        config.build(), folder, config=config, tokenizer=tokenizer, pooling="mean", max_length=202
    )
    return bases.load(folder)
