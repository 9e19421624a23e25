"""A tiny sentence encoder with a real tokenizer, a tiny task, and one finished run of them."""

import contextlib
import io
from pathlib import Path

import pytest

from graftwork.cli import main
from graftwork.tasks import comparisons

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fine", "dull", "film", "a"),
    *("the", "is", "more", "less", "not", "than", "."),
]


def build_base(folder: Path) -> Path:
    """Write a BERT of two layers of width 16, with a word tokenizer, and return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    found = {w for row in comparisons("train", 400).records() for w in row["premise"].split()}
    words = [*WORDS, *sorted(found - set(WORDS))]
    words = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """Folder of the tiny encoder."""
    return str(build_base(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> str:
    """A CSV whose label is one word."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    lines = [f"a {w} film .,{'yes' if w in ('good', 'fine') else 'no'}" for w in WORDS[5:9]]
    path.write_text("sentence,label\n" + "\n".join(lines * 20) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def run(tmp_path_factory, base, reviews) -> Path:
    """Folder of a finished run: diff pruning over `reviews`."""
    folder = tmp_path_factory.mktemp("runs") / "reviews"
    words = ["adapt", "--base", base, "--data", reviews, "--tuner", "diff_pruning"]
    words += ["--share", "0.05", "--steps", "30", "--batch-size", "8", "--eval-every", "10"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*words, "--out", str(folder)]) == 0
    return folder
