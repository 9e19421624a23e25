"""Conversations: reading them, and parting what a chat template renders at the assistant's turns.

A template is trusted only as far as it can be checked: what it renders of a conversation up to and
with an answer must begin with what it renders before the answer, where an answer is asked for. So
the tokens before an answer are the same in training and when the answer is generated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graftwork._errors import InputError
from graftwork.tasks._language_input import Turns

Message = Mapping[str, str]
Piece = tuple[str, bool]
"""A stretch of text, and whether it is learnt."""

ASSISTANT = "assistant"
_ONE_DAY = (
    "{% macro strftime_now(form) %}"
    "{{ {'%Y-%m-%d': '2024-07-26', '%B %d, %Y': 'July 26, 2024'}.get(form, '26 Jul 2024') }}"
    # The line break is not written: the environment trims one after a block.
    "{% endmacro %}\n"
)
"""Put before a template that asks for the date: always the day that Llama 3 falls back to."""


def conversation_of(value: Any, where: str) -> list[Message]:
    """Return the messages in a cell: a list of `{role, content}`, or JSON text of one.

    Raises:
        InputError: anything else, or a conversation without messages.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InputError(f"{where}: {value[:60]!r} is not JSON of messages ({error})") from error
    if not isinstance(found, list | tuple | np.ndarray) or not len(found):
        raise InputError(f"{where}: {found!r} is no list of messages, each with role and content")
    return [_message(message, where) for message in found]


def _message(message: Any, where: str) -> Message:
    given = dict(message) if isinstance(message, Mapping) else {}
    # A Parquet column of structures has every key in every row.
    said = {key: value for key, value in given.items() if value is not None}
    if set(said) != {"role", "content"} or not all(type(v) is str for v in said.values()):
        raise InputError(
            f"{where}: {message!r} is no message; a message has exactly the texts role and content"
        )
    return said


def render(tokenizer: Any, messages: Sequence[Message], where: str, *, asked: bool) -> str:
    """Return a conversation as the tokenizer's chat template writes it.

    Dates that a template asks for are those of one fixed day: else the same data would give other
    tokens tomorrow.

    Args:
        tokenizer: has the template.
        messages: in order.
        where: how errors name the row.
        asked: whether an answer is asked for at the end (the generation prompt).

    Raises:
        InputError: there is no template, or it refuses the conversation.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the base's tokenizer has no chat template, so messages cannot be rendered; take a "
            "base that has one, or the columns prompt and completion"
        )
    try:
        template = tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=_ONE_DAY + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=asked,
        )
    except (TemplateError, ValueError, TypeError, IndexError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages) or "no message"
        raise InputError(f"{where}: the chat template refuses {roles}: {error}") from error
    return str(text)


def learnt_pieces(
    tokenizer: Any, messages: Sequence[Message], turns: Turns, where: str
) -> list[Piece]:
    """Return a conversation in pieces that alternate: not learnt, learnt, ...

    It ends with the last turn of the assistant: what follows it teaches nothing.

    Raises:
        InputError: the assistant has no turn, or the template cannot be parted at its turns.
    """
    answers = _answers(messages)
    if not answers:
        raise InputError(f"{where}: the conversation has no turn of the role {ASSISTANT!r}")
    return list(_pieces(tokenizer, messages, answers if turns == "all" else answers[-1:], where))


def prompt_pieces(
    tokenizer: Any, messages: Sequence[Message], turns: Turns, where: str
) -> list[Piece]:
    """Return what comes before the next answer, in the pieces that it has in training.

    An answer at the very end is left out: it is what is to be said.

    Raises:
        InputError: nothing comes before the answer, or the template cannot be parted.
    """
    if messages[-1]["role"] == ASSISTANT:
        messages = messages[:-1]
    if not messages:
        raise InputError(f"{where}: the conversation is one answer; give what comes before it")
    answers = _answers(messages) if turns == "all" else []
    pieces = list(_pieces(tokenizer, messages, answers, where))
    done = "".join(text for text, _ in pieces)
    whole = render(tokenizer, messages, where, asked=True)
    return [*pieces, (_rest(whole, done, where), False)]


def _answers(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]


def _pieces(
    tokenizer: Any, messages: Sequence[Message], answers: Sequence[int], where: str
) -> Iterator[Piece]:
    done = ""
    for place in answers:
        before = render(tokenizer, messages[:place], where, asked=True)
        after = render(tokenizer, messages[: place + 1], where, asked=False)
        yield _rest(before, done, where), False
        yield _rest(after, before, where), True
        done = after


def _rest(whole: str, start: str, where: str) -> str:
    if not whole.startswith(start):
        raise InputError(
            f"{where}: the chat template writes earlier turns otherwise once others follow, or an "
            f"answer otherwise than it asks for one: {whole[-60:]!r} does not go on "
            f"{start[-60:]!r}; learn the last turn only (turns 'last'), or mend the template"
        )
    return whole[len(start) :]


def end_of_turn(tokenizer: Any) -> str:
    """Return the token by which the chat template ends an answer.

    Raises:
        InputError: it ends an answer by no special token, so no answer would know where to stop.
    """
    probe = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"}]
    answer = learnt_pieces(tokenizer, probe, "last", "a conversation of two turns")[-1][0]
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = [i for i in ids if i in added or i in tokenizer.all_special_ids]
    if not special:
        raise InputError(
            f"the chat template writes an answer as {answer!r}, which ends with no special token, "
            "so an answer would not know where to stop; add {{ eos_token }} to the template"
        )
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in special else special[-1]
    return str(tokenizer.convert_ids_to_tokens(end))
