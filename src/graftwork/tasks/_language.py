"""Texts of a language model: their tokens, which of them are learnt, and the logits.

Shape legend: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from graftwork._errors import InputError, UnsupportedError
from graftwork.objectives import IGNORED
from graftwork.tasks._call_spec import CallSpec, Ports, TaskBase
from graftwork.tasks._chat import Piece, conversation_of, learnt_pieces, prompt_pieces
from graftwork.tasks._encoded import Tokens
from graftwork.tasks._language_input import LanguageInput
from graftwork.tasks._sequences import Ragged
from graftwork.tasks._table import Table
from graftwork.tasks._texts import text_column, texts_of, tokenizer_of, tokens_of


def encode_prompts(spec: CallSpec, base: TaskBase, table: Table) -> Tokens:
    """Return the tokens that an answer to each row goes on from: a prompt is never cut.

    Raises:
        InputError: a prompt is empty, or leaves no room for an answer; names the row.
    """
    language, tokenizer = _language(spec), tokenizer_of(base)
    if language.form == "messages":
        pieces = [
            prompt_pieces(tokenizer, conversation_of(value, where), language.turns, where)
            for value, where in _cells(spec, table)
        ]
    else:
        pieces = [[(text, False)] for text in texts_of(spec, table)[0]]
    rows = [ids for ids, _ in _token_rows(spec, base, pieces)]
    for row, ids in enumerate(rows):
        if not ids:
            raise InputError(f"{table.where(row)}: the prompt has no tokens; {_NO_BEGINNING}")
        if spec.max_length is not None and len(ids) >= spec.max_length:
            raise InputError(
                f"{table.where(row)}: the prompt has {len(ids)} tokens, and with at least one of "
                f"the answer may have {spec.max_length} (max_length); shorten it"
            )
    return tokens_of(base, {"input_ids": rows}, 1)


def encode_learnt(
    spec: CallSpec, base: TaskBase, table: Table, completion: str | None
) -> tuple[Tokens, Ragged, int]:
    """Return the tokens of whole rows, the target of each position, and how many tokens were cut.

    The target of a position is the token after it, where that one is learnt. A row that is longer
    than `max_length` loses its end.

    Args:
        spec: the signature.
        base: gives the tokenizer.
        table: the rows.
        completion: column of what follows the prompt; for the form "completion" only.

    Raises:
        InputError: nothing of a row can be learnt; names the row.
    """
    language = _language(spec)
    end, closed = end_id(base, language), language.form == "messages"
    pieces = _learnt_pieces(spec, base, table, completion)
    tokens, targets, cut = [], [], 0
    for row, (ids, learnt) in enumerate(_token_rows(spec, base, pieces, end if closed else None)):
        if not closed:
            ids, learnt = [*ids, end], [*learnt, True]
        kept = ids[: spec.max_length]
        following = [i if yes else IGNORED for i, yes in zip(ids, learnt, strict=True)]
        shifted = [*following[1 : len(kept)], IGNORED]
        unseen = language.form == "completion" and learnt[0]
        if unseen or all(target == IGNORED for target in shifted):
            raise InputError(f"{table.where(row)}: {_nothing(ids, learnt, spec.max_length)}")
        cut += len(ids) - len(kept)
        tokens.append(kept)
        targets.append(shifted)
    return tokens_of(base, {"input_ids": tokens}, 1), Ragged.of(targets), cut


def _learnt_pieces(
    spec: CallSpec, base: TaskBase, table: Table, completion: str | None
) -> list[list[Piece]]:
    language, tokenizer = _language(spec), tokenizer_of(base)
    if language.form == "messages":
        return [
            learnt_pieces(tokenizer, conversation_of(value, where), language.turns, where)
            for value, where in _cells(spec, table)
        ]
    texts = texts_of(spec, table)[0]
    if language.form == "text":
        return [[(text, True)] for text in texts]
    if completion is None:
        raise InputError("the form 'completion' needs the column of completions as its target")
    answers = text_column(table, completion)
    return [[(text, False), (answer, True)] for text, answer in zip(texts, answers, strict=True)]


def _cells(spec: CallSpec, table: Table) -> list[tuple[Any, str]]:
    (name,) = spec.fields
    return [
        (value, f"{table.where(row)}, column {name!r}") for row, value in enumerate(table[name])
    ]


def _token_rows(
    spec: CallSpec, base: TaskBase, rows: Sequence[Sequence[Piece]], end: int | None = None
) -> list[tuple[list[int], list[bool]]]:
    """Return token ids, and whether each is learnt.

    Pieces are tokenised apart: so the tokens of a prompt do not depend on what follows it, and are
    the same in training and when an answer is generated.

    Args:
        spec: tells whether a token of the beginning comes first.
        base: gives the tokenizer.
        rows: pieces of each row.
        end: token that a learnt piece must hold: what follows its last one is not learnt. None:
            all of a piece is.
    """
    tokenizer = tokenizer_of(base)
    texts = [text for pieces in rows for text, _ in pieces]
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    begin = [] if _language(spec).form == "messages" else beginning(tokenizer)
    each = iter(found)
    out = []
    for pieces in rows:
        ids, learnt = list(begin), [False] * len(begin)
        for text, wanted in pieces:
            part = list(next(each))
            if wanted and end is not None and end not in part:
                raise InputError(f"the chat template does not end the turn {text!r} as others")
            after = 0 if not wanted else len(part) if end is None else _last(part, end) + 1
            ids += part
            learnt += [place < after for place in range(len(part))]
        out.append((ids, learnt))
    return out


def _last(values: list[int], value: int) -> int:
    return len(values) - 1 - values[::-1].index(value)


def beginning(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer puts before every text: one, or none.

    Its token at the end of a text, where it has one, is no part of a prompt.
    """
    empty = list(tokenizer("")["input_ids"])
    begin = getattr(tokenizer, "bos_token_id", None)
    return empty[:1] if begin is not None and empty[:1] == [begin] else []


def end_id(base: TaskBase, language: LanguageInput) -> int:
    """Return the number of the token that ends what is learnt.

    Raises:
        InputError: the tokenizer has no such token.
    """
    tokenizer = tokenizer_of(base)
    found = tokenizer.convert_tokens_to_ids(language.end)
    if found is None or tokenizer.convert_ids_to_tokens(found) != language.end:
        raise InputError(f"the base's tokenizer has no token {language.end!r}, which ends a text")
    return int(found)


_NO_BEGINNING = (
    "the tokenizer puts none before a text, so there is nothing that a first token could follow"
)


def _nothing(ids: list[int], learnt: list[bool], most: int | None) -> str:
    first = learnt.index(True)
    if first == 0:
        return f"what is learnt follows nothing: {_NO_BEGINNING}"
    return (
        f"nothing can be learnt of it: {first} of its {len(ids)} tokens come before what is "
        f"learnt, and only {most} are kept; raise max_length, or shorten or drop the row"
    )


def _language(spec: CallSpec) -> LanguageInput:
    if spec.language is None:
        raise InputError("the call 'language' needs the signature's `language`")
    return spec.language


def run_language(
    spec: CallSpec, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]
) -> Tensor:
    """Return the logits of the token after each position, `(B, L, V)`.

    Raises:
        UnsupportedError: the module gives no logits.
    """
    del spec, ports
    # Keys and values of past positions are of no use in a call on whole rows.
    cached = hasattr(getattr(module, "config", None), "use_cache")
    output = module(**inputs, use_cache=False) if cached else module(**inputs)
    logits = output if isinstance(output, Tensor) else _logits(output)
    if logits.dim() != 3 or logits.shape[:2] != inputs["input_ids"].shape:
        raise UnsupportedError(
            f"the module gave {tuple(logits.shape)} for tokens "
            f"{tuple(inputs['input_ids'].shape)}; a language model gives (rows, positions, "
            f"vocabulary); {_LOAD}"
        )
    return logits


_LOAD = "load the base with its language-model head: bases.load_language_model(...)"


def _logits(output: Any) -> Tensor:
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if not isinstance(logits, Tensor):
        what = sorted(output) if isinstance(output, Mapping) else type(output).__name__
        raise UnsupportedError(f"the module gave {what} and no logits of tokens; {_LOAD}")
    return logits
