"""Tasks of words and of texts: what a configuration means for their tables and their base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from graftwork._errors import InputError, UnsupportedError
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._chat import end_of_turn
from graftwork.tasks._config import TaskConfig
from graftwork.tasks._language_input import Form, LanguageInput
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table
from graftwork.tasks._texts import template_fields, tokenizer_of
from graftwork.tasks._word_labels import word_labels_of

MESSAGES, COMPLETION = "messages", "completion"
"""Columns by which a table tells its form where nothing else does."""


def with_form(train: Table, config: TaskConfig) -> TaskConfig:
    """Return a configuration of kind "text" with its form and its column of completions stated."""
    if config.kind != "text":
        return config
    named = config.label_columns[0] if config.label_columns else config.label
    label = COMPLETION if named == "label" and named not in train else named
    form: Form = "text"
    if config.text_form is not None:
        form = config.text_form
    elif MESSAGES in (config.inputs or train.columns) and not config.template:
        form = "messages"
    elif label in train and label not in config.inputs:
        form = "completion"
    return replace(config, text_form=form, label=label, label_columns=())


def sequence_signature(base: TaskBase, train: Table, config: TaskConfig) -> Signature:
    """Return the signature of a task of words or texts.

    Args:
        base: tells tokenizer and length.
        train: tells columns and labels.
        config: what the user states, its form included.

    Raises:
        InputError: it does not say which column is the input, or the tokenizer has no token that
            ends a text.
        UnknownNameError: a column does not exist.
    """
    words = config.kind == "tokens"
    language = None if words else _language(base, config)
    labels = (config.labels or word_labels_of(train, config.targets[0])) if words else ()
    return Signature(
        kind=config.kind,
        call="words" if words else "language",
        fields=_fields(train, config),
        targets=config.targets,
        labels=labels,
        template=config.template,
        max_length=config.max_length or base.max_length,
        pooling="none",
        head="head" if words and config.head else None,
        language=language,
    )


def _language(base: TaskBase, config: TaskConfig) -> LanguageInput:
    tokenizer = tokenizer_of(base)
    assert config.text_form is not None
    if config.text_form == "messages":
        end = end_of_turn(tokenizer)
    elif tokenizer.eos_token is None:
        raise InputError(
            "the base's tokenizer has no end-of-text token, so an answer would not know where to "
            "stop; set tokenizer.eos_token and save the folder anew"
        )
    else:
        end = str(tokenizer.eos_token)
    return LanguageInput(config.text_form, end, config.turns, config.max_new_tokens)


def _fields(table: Table, config: TaskConfig) -> tuple[str, ...]:
    for name in config.inputs:
        table[name]
    if config.template:
        names = [name for template in config.template for name in template_fields(template)]
        return tuple(dict.fromkeys(names))
    others = {config.group, *config.targets}
    found = config.inputs or tuple(name for name in table.columns if name not in others)
    if not config.inputs and config.text_form == "messages" and MESSAGES in found:
        return (MESSAGES,)
    if len(found) != 1:
        what = "words" if config.kind == "tokens" else "the text or prompt"
        raise InputError(
            f"which column holds {what}? {list(found)} could; name one by `inputs`"
            + ("" if config.kind == "tokens" else ", or join several by one `template`")
        )
    return found


def check_language_model(base: TaskBase, signature: Signature) -> None:
    """Check that no position of the base sees those after it, and that it knows every token.

    Tried, not looked up: two rows that differ in their last token must have the same logits at the
    first.

    Raises:
        UnsupportedError: it is no causal language model, or another tokenizer's.
    """
    device = next((p.device for p in base.model.parameters()), torch.device("cpu"))
    ids = torch.tensor([[0, 0], [0, 1]], device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = signature.call_model(base.model, {}, inputs)
    one, other = logits[:, 0].float()
    if bool((one - other).abs().max() > 1e-4 * one.abs().max()):
        raise UnsupportedError(
            f"{type(base.model).__name__} is no causal language model: a position sees the words "
            "after it, so to tell the next one is no task; take a decoder such as GPT-2 or Llama"
        )
    size = len(tokenizer_of(base))
    if logits.shape[-1] < size:
        raise UnsupportedError(
            f"the base gives logits of {logits.shape[-1]} tokens, but its tokenizer has {size}; "
            "take the tokenizer that belongs to it"
        )
