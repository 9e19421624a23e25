"""Tiny bases for words and texts: folders with a tokenizer and a model, built in code, and data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from graftwork.bases import Base
from graftwork.deltas import Delta
from graftwork.tasks import Table, Task
from graftwork.training import History, TrainConfig, finish, fit, start
from graftwork.tuning import Tuner

NAMES, PLACES = ("ada", "lovelace", "grace", "hopper"), ("paris", "newyork", "oslo")
OTHERS = ("met", "in", "and", "saw", "the", "went", "to")
PIECES = ("love", "##lace", "hop", "##per", "new", "##york")
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "ada", "grace", "paris", "oslo"),
    *PIECES,
    *OTHERS,
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "pig": "oink"}


def word_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
    )


@cache
def text_tokenizer(*, begin: bool = False) -> PreTrainedTokenizerFast:
    """Bytes with some merges; `begin` puts <bos> before each text, as Llama's does."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
    texts = [f"The {animal} says {sound}" for animal, sound in SOUNDS.items()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([*texts, "user assistant system"] * 2, trainer)
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>", model_max_length=64
    )
    made.chat_template = TEMPLATE
    return made


def write_bert(folder: Path) -> Path:
    word_tokenizer().save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=48,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def pretrained(model: Any, tokenizer: PreTrainedTokenizerFast, steps: int = 80) -> Any:
    """Teach all weights that any animal may say any sound.

    Scales and prompts can do nothing with a decoder of random weights.
    """
    texts = [f"The {animal} says {sound}" for animal in SOUNDS for sound in SOUNDS.values()]
    # Each text is of as many tokens: one batch, no padding.
    ids = torch.tensor([[*tokenizer(text)["input_ids"], 0] for text in texts])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    return model.eval()


def write_gpt2(folder: Path, *, taught: bool = False) -> Path:
    tokenizer = text_tokenizer()
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=96,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel(config)
        (pretrained(model, tokenizer) if taught else model).save_pretrained(folder)
    return folder


def write_llama(folder: Path) -> Path:
    tokenizer = text_tokenizer(begin=True)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=96,
            bos_token_id=1,
            eos_token_id=0,
            pad_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def named(rows: int = 60, seed: int = 0) -> Table:
    """Sentences of words with the labels B-PER, I-PER, B-LOC and O."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    words, labels = [], []
    for _ in range(rows):
        row = [draw(("ada", "grace")), draw(("lovelace", "hopper"))]
        marks = ["B-PER", "I-PER"]
        for _ in range(int(torch.randint(1, 3, (1,), generator=generator))):
            row += [draw(OTHERS), draw(PLACES)]
            marks += ["O", "B-LOC"]
        words.append(row)
        labels.append(marks)
    return Table({"words": words, "label": labels}, "named.jsonl")


def sounds(rows: int = 40) -> Table:
    animals = [list(SOUNDS)[i % len(SOUNDS)] for i in range(rows)]
    return Table(
        {
            "prompt": [f"The {animal} says" for animal in animals],
            "completion": [f" {SOUNDS[animal]}" for animal in animals],
        },
        "sounds.jsonl",
    )


def chats(rows: int = 40) -> Table:
    made: list[Any] = []
    for i in range(rows):
        first, second = list(SOUNDS)[i % 5], list(SOUNDS)[(2 * i + 1) % 5]
        made.append(
            [
                {"role": "user", "content": first},
                {"role": "assistant", "content": SOUNDS[first]},
                {"role": "user", "content": second},
                {"role": "assistant", "content": SOUNDS[second]},
            ]
        )
    return Table({"messages": made}, "chats.jsonl")


def learn(
    base: Base, task: Task, tuner: Tuner, steps: int = 60
) -> tuple[Delta, dict[str, float], float]:
    """Return the delta of a trained adaptation, its metrics, and its last loss by its first."""
    adaptation, history = start(base, task, tuner), History()
    fit(adaptation, task, TrainConfig(steps=steps, log_every=1), recorder=history)
    losses = [record["loss"] for record in history.records if "loss" in record]
    assert len(losses) == steps
    delta, metrics = finish(adaptation, task)
    return delta, metrics, sum(losses[-5:]) / sum(losses[:5])
