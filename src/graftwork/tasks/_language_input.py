"""What a language model reads of a row, what it learns of it, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from graftwork._errors import InputError, UnknownNameError

Form = Literal["completion", "text", "messages"]
Turns = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class LanguageInput:
    """The part of a signature that only texts of a language model have.

    Attributes:
        form: "completion": a prompt, of which nothing is learnt, and what follows it; "text": one
            text, all of which is learnt; "messages": a conversation in the base's chat template, of
            which turns of the assistant are learnt.
        end: the token that ends a completion, a text or a turn, as it is written. It is learnt, and
            an answer stops at it.
        turns: of messages: whether all turns of the assistant are learnt, or the last one only.
        max_new_tokens: most tokens of an answer.

    Raises:
        InputError: a value is out of range.
        UnknownNameError: no such form, or no such choice of turns.
    """

    form: Form
    end: str
    turns: Turns = "all"
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise UnknownNameError("form of text", self.form, get_args(Form))
        if self.turns not in get_args(Turns):
            raise UnknownNameError("turns", self.turns, get_args(Turns))
        if not self.end:
            raise InputError("language.end is empty; it must be the token that ends a text")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens {self.max_new_tokens} must be 1 or more")
