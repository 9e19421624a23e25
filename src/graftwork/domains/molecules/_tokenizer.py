"""The atom-wise tokenizer of SMILES, as a fast transformers tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from graftwork.errors import InputError

SMILES_PATTERN = r"\[[^\[\]]*\]|Br|Cl|[NOSPFI]|[bcnosp]|[BC]|[().=#\-+\\/:~@?>*$]|%[0-9]{2}|[0-9]"
"""What is one token, first match first: a bracket atom, Br and Cl, N O S P F I, aromatic b c n o s
p, B and C, a bond or other mark, a two-digit ring bond %dd, a digit (Schwaller et al., 2018; Ross
et al., 2021, use the same)."""

BOS, EOS, PAD, MASK, UNKNOWN = "<bos>", "<eos>", "<pad>", "<mask>", "<unk>"
SPECIAL = (BOS, EOS, PAD, MASK)
"""Ids 0 to 3; tokens follow by frequency, and `<unk>` is last."""
MAX_LENGTH = 202
"""Longest input in tokens, the two ends counted, as published."""

_TOKEN = re.compile(SMILES_PATTERN)


def atom_tokens(smiles: str, pattern: str = SMILES_PATTERN) -> list[str]:
    """Return the tokens of a string; a run of other characters is one token of its own.

    Example:
        >>> atom_tokens("C[nH]Cl%10")
        ['C', '[nH]', 'Cl', '%10']
        >>> atom_tokens("C{}O")
        ['C', '{}', 'O']
    """
    compiled = _TOKEN if pattern == SMILES_PATTERN else re.compile(pattern)
    out, end = [], 0
    for match in compiled.finditer(smiles):
        if match.start() > end:
            out.append(smiles[end : match.start()])
        out.append(match.group())
        end = match.end()
    return out + ([smiles[end:]] if end < len(smiles) else [])


def vocabulary_of(smiles: Iterable[str], pattern: str = SMILES_PATTERN) -> tuple[str, ...]:
    """Return the different tokens of a corpus, the most frequent first, ties by spelling."""
    counts = Counter[str]()
    for text in smiles:
        counts.update(atom_tokens(text, pattern))
    return tuple(sorted(counts, key=lambda token: (-counts[token], token)))


def smiles_tokenizer(
    vocabulary: Sequence[str],
    *,
    pattern: str = SMILES_PATTERN,
    max_length: int = MAX_LENGTH,
) -> Any:
    r"""Return a fast transformers tokenizer: `<bos>` tokens `<eos>`, two texts joined by `<eos>`.

    The published fine-tuning code maps a token that it does not know to `<pad>`, which hides the
    atom, and the pretraining code fails. Here it is `<unk>`.

    Args:
        vocabulary: tokens, e.g. of `vocabulary_of`; the special ones are added.
        pattern: regular expression of one token. Another one reads other strings (SELFIES:
            `\[[^\[\]]*\]`, peptides: `[A-Z]`).
        max_length: longest input in tokens.

    Raises:
        InputError: no tokens, a token twice, or one of the special names among them.

    Example:
        >>> tokenizer = smiles_tokenizer(["C", "O"])
        >>> tokenizer("CON")["input_ids"]
        [0, 4, 5, 6, 1]
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = (*SPECIAL, *vocabulary, UNKNOWN)
    if not vocabulary or len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise InputError(
            f"a vocabulary needs tokens, each once and none of SPECIAL; twice: {twice}"
        )
    ids = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} $B:1 {EOS}:1",
        special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])],
    )
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        mask_token=MASK,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
