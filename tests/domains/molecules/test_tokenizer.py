"""The atom-wise tokenizer: priority, ids, unknown tokens, and a round trip on real strings."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork.domains.molecules import atom_tokens, smiles_tokenizer, vocabulary_of
from graftwork.errors import InputError
from graftwork.tasks import read


@pytest.mark.parametrize(
    ("smiles", "tokens"),
    [
        ("CCl", ["C", "Cl"]),
        ("BrB", ["Br", "B"]),
        ("Sc", ["S", "c"]),
        ("[Sc+3]", ["[Sc+3]"]),
        ("C[C@@H](F)O", ["C", "[C@@H]", "(", "F", ")", "O"]),
        ("C%12CC%12", ["C", "%12", "C", "C", "%12"]),
        ("C1=CC/C=C\\1", ["C", "1", "=", "C", "C", "/", "C", "=", "C", "\\", "1"]),
        ("[13CH4].[Na+]", ["[13CH4]", ".", "[Na+]"]),
        ("N#N~*$:@?>-+", ["N", "#", "N", "~", "*", "$", ":", "@", "?", ">", "-", "+"]),
        ("I[", ["I", "["]),
        ("", []),
    ],
)
def test_priority_of_tokens(smiles: str, tokens: list[str]) -> None:
    assert atom_tokens(smiles) == tokens
    known = smiles_tokenizer(sorted(set(tokens)) or ["C"])
    assert known.tokenize(smiles) == tokens


def test_special_tokens_come_first_then_by_frequency_and_unknown_last() -> None:
    tokenizer = smiles_tokenizer(vocabulary_of(["CCO", "CN"]))
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert names == ["<bos>", "<eos>", "<pad>", "<mask>", "C", "N", "O", "<unk>"]
    assert tokenizer("CF")["input_ids"] == [0, 4, 7, 1]
    assert tokenizer("C", "O")["input_ids"] == [0, 4, 1, 6, 1]
    assert list(tokenizer("C")) == ["input_ids", "attention_mask"]


def test_round_trip_and_the_same_tokens_on_all_hiv_strings(data: Path) -> None:
    smiles = read(data / "hiv.csv")["smiles"]
    assert len(smiles) == 41127
    words = vocabulary_of(smiles)
    assert 200 <= len(words) <= 220
    assert words[:4] == ("c", "C", "(", ")")
    tokenizer = smiles_tokenizer(words, max_length=1000)
    ids = tokenizer(smiles)["input_ids"]
    assert all(row[0] == 0 and row[-1] == 1 for row in ids)
    back = tokenizer.batch_decode([row[1:-1] for row in ids])
    assert back == smiles
    place = tokenizer.get_vocab()
    for text, row in zip(smiles[::50], ids[::50], strict=True):
        assert row[1:-1] == [place[token] for token in atom_tokens(text)]


def test_comes_back_from_a_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = smiles_tokenizer(["C", "O", "[nH]"], max_length=9)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("C[nH]OF")["input_ids"] == tokenizer("C[nH]OF")["input_ids"]
    assert again.model_max_length == 9
    assert (again.mask_token_id, again.pad_token_id) == (3, 2)


def test_other_strings_by_another_pattern() -> None:
    pattern = r"\[[^\[\]]*\]"
    selfies = ["[C][Branch1][=O]", "[C][C]"]
    tokenizer = smiles_tokenizer(vocabulary_of(selfies, pattern), pattern=pattern)
    assert tokenizer.tokenize(selfies[0]) == ["[C]", "[Branch1]", "[=O]"]


@pytest.mark.parametrize("words", [[], ["C", "C"], ["<pad>", "C"]])
def test_vocabulary_is_checked(words: list[str]) -> None:
    with pytest.raises(InputError, match="a vocabulary needs tokens, each once"):
        smiles_tokenizer(words)
