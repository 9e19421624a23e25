"""Kind "text": what is learnt of a prompt, a text and a conversation, and what is answered."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tests.tasks.sequences import SOUNDS, TEMPLATE, chats, learn, sounds, text_tokenizer
from transformers import GPT2LMHeadModel

from graftwork._errors import (
    ConfigError,
    DeltaError,
    FingerprintError,
    InputError,
    UnsupportedError,
)
from graftwork.bases import Base, load
from graftwork.bases._tokenizer import tokenizer_prints
from graftwork.deltas import dumps, loads, view
from graftwork.tasks import (
    LanguageInput,
    Predictor,
    Signature,
    Table,
    Task,
    TaskConfig,
    evaluate_delta,
    predict,
    task_from_tables,
)
from graftwork.tasks._chat import end_of_turn, prompt_pieces, render
from graftwork.tuning import BitFit, LoRA, PromptTuning

TEXT = TaskConfig(kind="text", max_new_tokens=8)
N, EOS, BOS, START, END = -100, 0, 1, 2, 3
LANGUAGE = {"form": "text", "end": "<eos>", "turns": "all", "max_new_tokens": 8}


def made(base: Base, table: Table, config: TaskConfig = TEXT) -> Task:
    return task_from_tables(base, {"train": table, "eval": table}, config, batch_size=16)


def rows_of(task: Task) -> list[tuple[list[int], list[int]]]:
    """Token ids and targets of each row, without padding, in order."""
    out = []
    for batch in task.streams["eval"].once(1):
        assert batch.targets is not None
        assert bool((batch.inputs["attention_mask"] == 1).all())
        out.append((batch.inputs["input_ids"][0].tolist(), batch.targets[0].tolist()))
    return out


def tokens(base: Base, text: str) -> list[int]:
    found: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def with_tokenizer(base: Base, **changes: Any) -> Base:
    """The base with a copy of its tokenizer that differs."""
    tokenizer = type(base.tokenizer)(
        tokenizer_object=base.tokenizer.backend_tokenizer,
        **{"eos_token": "<eos>", "bos_token": "<bos>"} | changes.pop("tokens", {}),
    )
    tokenizer.chat_template = changes.get("chat_template", TEMPLATE)
    return dataclasses.replace(
        base, tokenizer=tokenizer, processing={**base.processing, **tokenizer_prints(tokenizer)}
    )


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_only_completion_and_end_are_learnt(base: str, request: pytest.FixtureRequest) -> None:
    model: Base = request.getfixturevalue(base)
    begin = [BOS] if base == "llama" else []
    for (ids, targets), row in zip(
        rows_of(made(model, sounds(5))), sounds(5).records(), strict=True
    ):
        prompt, answer = tokens(model, row["prompt"]), tokens(model, row["completion"])
        assert ids == [*begin, *prompt, *answer, EOS]
        before = len(begin) + len(prompt)
        assert targets == [N] * (before - 1) + [*answer, EOS, N]


def test_the_border_is_that_of_generation_where_joint_tokens_would_cross_it(gpt2: Base) -> None:
    row = {"prompt": "The cat sa", "completion": "ys meow"}
    ((ids, targets),) = rows_of(made(gpt2, Table.from_records([row])))
    assert [*tokens(gpt2, row["prompt"] + row["completion"]), EOS] != ids
    signature = made(gpt2, Table.from_records([row])).signature
    assert signature is not None
    prompt = signature.encode(gpt2, [{"prompt": row["prompt"]}])["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt
    assert targets[: len(prompt) - 1] == [N] * (len(prompt) - 1)
    assert targets[len(prompt) - 1 :] == [*ids[len(prompt) :], N]


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_all_of_a_text_is_learnt(base: str, request: pytest.FixtureRequest) -> None:
    model: Base = request.getfixturevalue(base)
    task = made(model, Table({"text": ["The cat says meow", "moo"]}))
    assert task.signature is not None
    assert task.signature.targets == ()
    for ids, targets in rows_of(task):
        assert ids[-1] == EOS
        assert (ids[0] == BOS) == (base == "llama")
        assert targets == [*ids[1:], N]


def naive_conversation(base: Base, messages: list[Any], last: bool) -> tuple[list[int], list[int]]:
    """Ids and targets turn by turn, written out by hand for the template of these tests."""
    ids: list[int] = []
    learnt: list[bool] = []
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    for i, message in enumerate(messages[: answers[-1] + 1]):
        head = [START, *tokens(base, f"{message['role']}\n")]
        body = [*tokens(base, message["content"]), END]
        yes = message["role"] == "assistant" and (not last or i == answers[-1])
        ids += [*head, *body, *tokens(base, "\n")]
        learnt += [False] * len(head) + [yes] * len(body) + [False]
    targets = [i if yes else N for i, yes in zip(ids, learnt, strict=True)]
    return ids, [*targets[1:], N]


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_turns_of_the_assistant_are_learnt(
    base: str, turns: Any, request: pytest.FixtureRequest
) -> None:
    model: Base = request.getfixturevalue(base)
    table = chats(6)
    long = [{"role": "system", "content": "be brief"}, *table["messages"][0]]
    unanswered = [*table["messages"][1], {"role": "user", "content": "pig"}]
    table = Table({"messages": [*table["messages"], long, unanswered]})
    task = made(model, table, TaskConfig(kind="text", turns=turns))
    for (ids, targets), messages in zip(rows_of(task), table["messages"], strict=True):
        assert (ids, targets) == naive_conversation(model, messages, turns == "last")


def test_what_is_learnt_is_what_transformers_marks_as_the_assistants(gpt2: Base) -> None:
    marked = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
        "{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    base, table = with_tokenizer(gpt2, chat_template=marked), chats(5)
    for (ids, targets), messages in zip(rows_of(made(base, table)), table["messages"], strict=True):
        theirs = base.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert theirs["input_ids"] == ids
        learnt = [i if yes else N for i, yes in zip(ids, theirs["assistant_masks"], strict=True)]
        assert targets == [*learnt[1:], N]


def test_an_answer_goes_on_from_the_same_tokens_as_in_training(gpt2: Base) -> None:
    table = chats(5)
    for turns in ("all", "last"):
        task = made(gpt2, table, TaskConfig(kind="text", turns=turns))  # type: ignore[arg-type]
        assert task.signature is not None
        assert task.signature.language == LanguageInput("messages", "<|im_end|>", turns, 64)  # type: ignore[arg-type]
        for (ids, targets), messages in zip(rows_of(task), table["messages"], strict=True):
            for cut in (messages, messages[:-1]):
                found = task.signature.encode(gpt2, [{"messages": cut}])["input_ids"][0].tolist()
                assert found == ids[: len(found)]
                assert targets[len(found) - 1] == ids[len(found)] != N
                assert targets[len(found) - 2] == N


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_one_rows_loss_is_that_of_transformers(base: str, request: pytest.FixtureRequest) -> None:
    model: Base = request.getfixturevalue(base)
    task = made(model, sounds(5))
    signature = task.signature
    assert signature is not None
    for batch in task.streams["eval"].once(1):
        ids = batch.inputs["input_ids"]
        assert batch.targets is not None
        # transformers shifts by itself: its label of a place is the token at that place.
        labels = torch.cat([torch.tensor([[N]]), batch.targets[:, :-1]], 1)
        with torch.no_grad():
            theirs = model.model(input_ids=ids, labels=labels).loss
            ours = task.objectives["task"](
                lambda b: signature.call_model(model.model, {}, b.inputs), batch
            )
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_padding_changes_nothing_and_metrics_are_over_all_tokens(gpt2: Base) -> None:
    rows = Table({"prompt": ["The cat says", "a"], "completion": [" meow", "b c d e f"]})
    task = made(gpt2, rows)
    signature = task.signature
    assert signature is not None

    def run(batch: Any) -> Any:
        return signature.call_model(gpt2.model, {}, batch.inputs)

    losses, hits = [], []
    for ids, targets in rows_of(task):
        with torch.no_grad():
            logits = gpt2.model(input_ids=torch.tensor([ids])).logits[0].double()
        for place, target in enumerate(targets):
            if target != N:
                losses.append(-logits[place].log_softmax(0)[target].item())
                hits.append(logits[place].argmax().item() == target)
    metrics = task.evaluate(run, batch_size=2)
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert list(metrics) == ["loss", "perplexity", "accuracy"]


def test_learnt_answers_batched_and_alone_and_after_saving(gpt2: Base) -> None:
    task = made(gpt2, sounds())
    delta, metrics, fell = learn(gpt2, task, LoRA(values_lr=0.02), 120)
    assert fell < 0.2
    loaded = loads(dumps(delta))
    predictor = Predictor(gpt2, loaded)
    prompts = [*sounds(5)["prompt"], "cow", "The pig", "a dog and a cat", "The"]
    found = predictor.predict([{"prompt": prompt} for prompt in prompts])
    assert sum(f" {sound}" == p.text for sound, p in zip(SOUNDS.values(), found, strict=False)) >= 4
    for prompt, together in zip(prompts, found, strict=True):
        assert predictor.predict([{"prompt": prompt}]) == [together]
        assert together.text == naive_answer(gpt2, view(gpt2, loaded).eval(), prompt, 8)
    assert evaluate_delta(gpt2, loaded, sounds(), batch_size=7)["loss"] == pytest.approx(
        evaluate_delta(gpt2, loaded, sounds(), batch_size=40)["loss"]
    )
    assert metrics["accuracy"] >= 0.9


def naive_answer(base: Base, module: Any, prompt: str, most: int) -> str:
    """The most probable token again and again, the whole row each time."""
    ids, start = tokens(base, prompt), len(tokens(base, prompt))
    with torch.no_grad():
        while len(ids) - start < most:
            logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == EOS:
                return str(base.tokenizer.decode(ids[start:-1]))
    return str(base.tokenizer.decode(ids[start:]))


def test_prompts_of_their_own_answer_by_whole_rows(taught: Base) -> None:
    rows = Table({"prompt": sounds()["prompt"], "completion": [" meow"] * 40})
    delta, _, fell = learn(taught, made(taught, rows), PromptTuning(length=4, values_lr=0.02))
    assert fell < 0.7
    for prompt in ("The cat says", "cow"):
        (found,) = predict(taught, delta, [{"prompt": prompt}])
        assert found.text == naive_answer(taught, view(taught, delta).eval(), prompt, 8)


def test_nothing_of_the_bases_own_settings_of_generation_has_a_part(gpt2: Base) -> None:
    delta, _, _ = learn(gpt2, made(gpt2, sounds(5)), BitFit(values_lr=0.1), 50)
    before = predict(gpt2, delta, sounds(5))
    config = gpt2.model.generation_config  # type: ignore[attr-defined]
    kept = config.to_dict()
    config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=7)
    try:
        assert predict(gpt2, delta, sounds(5)) == before
        assert config.repetition_penalty == 5.0
    finally:
        config.update(**kept)


def test_a_prompt_from_a_template_of_several_columns(gpt2: Base) -> None:
    rows = Table({"animal": ["cat", "dog"], "place": ["a", "b"], "says": ["meow", "woof"]})
    config = TaskConfig(kind="text", template=("{animal} in {place}:",), label="says")
    task = made(gpt2, rows, config)
    assert task.signature is not None
    assert (task.signature.fields, task.signature.targets) == (("animal", "place"), ("says",))
    ids, targets = rows_of(task)[0]
    assert ids == [*tokens(gpt2, "cat in a:"), *tokens(gpt2, "meow"), EOS]
    assert targets[-3:] == [*tokens(gpt2, "meow")[-1:], EOS, N]


def test_signatures_keep_what_is_learnt(gpt2: Base) -> None:
    signature = made(gpt2, chats(5)).signature
    assert signature is not None
    data = signature.to_json()
    assert data["version"] == 2
    assert data["language"] == {
        "form": "messages",
        "end": "<|im_end|>",
        "turns": "all",
        "max_new_tokens": 8,
    }
    assert Signature.from_json(data) == signature


@pytest.mark.parametrize(
    ("table", "config", "message"),
    [
        ({"prompt": ["a b"], "completion": [None]}, {}, r"row 1: column 'completion' is missing"),
        (
            {"prompt": [""], "completion": ["a"]},
            {},
            r"row 1: what is learnt follows nothing: the t",
        ),
        ({"text": [""]}, {}, r"row 1: what is learnt follows nothing"),
        (
            {"prompt": ["a b c d e f"], "completion": ["a"]},
            {"max_length": 5},
            r"nothing can be learnt of it: \d+ of its \d+ tokens come before what is learnt",
        ),
        (
            {"a": ["x"], "b": ["y"]},
            {},
            r"which column holds the text or prompt\? \['a', 'b'\] could",
        ),
        ({"messages": [[]]}, {}, r"row 1, column 'messages': \[\] is no list of messages"),
        ({"messages": ["[{"]}, {}, r"'\[\{' is not JSON of messages"),
        ({"messages": [[{"role": "user"}]]}, {}, r"is no message; a message has exactly the texts"),
        (
            {"messages": [[{"role": "user", "content": "a"}]]},
            {},
            r"the conversation has no turn of the role 'assistant'",
        ),
        ({"text": ["a"]}, {"text_form": "completion"}, "unknown column .* 'completion'"),
    ],
)
def test_bad_rows_are_named(
    table: dict[str, Any], config: dict[str, Any], message: str, gpt2: Base
) -> None:
    with pytest.raises(InputError, match=message):
        made(gpt2, Table(table, "t.jsonl"), TaskConfig(kind="text", **config))


def test_what_is_cut_is_counted_and_prompts_never_are(gpt2: Base) -> None:
    rows = Table({"prompt": ["a"] * 16, "completion": ["b c d e f g h"] * 16})
    task = made(gpt2, rows, TaskConfig(kind="text", max_length=6))
    ids, targets = rows_of(task)[0]
    assert len(ids) == 6
    assert EOS not in ids
    assert targets == [*ids[1:], N]
    whole = rows_of(made(gpt2, rows))[0][0]
    assert task.streams["eval"].cut == 16 * (len(whole) - 6)  # type: ignore[attr-defined]
    delta, metrics, _ = learn(gpt2, task, LoRA(values_lr=0.02), 50)
    assert metrics["cut"] == 16.0 * (len(whole) - 6)
    with pytest.raises(InputError, match=r"row 1: the prompt has \d+ tokens, .* may have 6"):
        predict(gpt2, delta, [{"prompt": "a b c d e f g h i"}])


def test_a_first_row_that_is_too_long_to_be_answered_is_learnt_from(gpt2: Base) -> None:
    rows = Table({"text": ["The cat says " * 30, "moo"]})
    task = made(gpt2, rows)
    assert [len(ids) for ids, _ in rows_of(task)] == [64, 3]
    longest = chats(1)["messages"][0] * 4
    config = TaskConfig(kind="text", max_length=40)
    ids, targets = rows_of(made(gpt2, Table({"messages": [longest]}), config))[0]
    whole_ids, whole = naive_conversation(gpt2, longest, last=False)
    assert (ids, targets) == (whole_ids[:40], [*whole[:39], N])


def test_messages_may_be_json_and_end_with_the_answer_to_be_said(gpt2: Base) -> None:
    import json

    table = chats(5)
    as_text = Table({"messages": [json.dumps(m) for m in table["messages"]]})
    assert rows_of(made(gpt2, table)) == rows_of(made(gpt2, as_text))


def test_dates_in_a_template_are_of_one_day(gpt2: Base) -> None:
    dated = with_tokenizer(gpt2, chat_template="{{ strftime_now('%d %b %Y') }}: " + TEMPLATE)
    messages = [{"role": "user", "content": "a"}]
    text = render(dated.tokenizer, messages, "row 1", asked=True)
    assert text == "26 Jul 2024: " + render(gpt2.tokenizer, messages, "row 1", asked=True)


def test_templates_that_cannot_be_parted_or_stopped_are_refused(gpt2: Base) -> None:
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    asked = "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(InputError, match="ends with no special token"):
        end_of_turn(with_tokenizer(gpt2, chat_template=plain + asked).tokenizer)
    # As templates of reasoning models do, earlier answers are written otherwise.
    shortened = TEMPLATE.replace(
        "{{ m['content'] }}",
        "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% else %}-{% endif %}",
    )
    base = with_tokenizer(gpt2, chat_template=shortened)
    with pytest.raises(InputError, match=r"row 1, .*writes earlier turns otherwise .*turns 'last'"):
        made(base, chats(5))
    task = made(base, chats(5), TaskConfig(kind="text", turns="last"))
    ids, targets = rows_of(task)[0]
    assert [t for t in targets if t != N] == [*tokens(gpt2, "woof"), END]
    assert tokens(gpt2, "-")[0] in ids
    none = with_tokenizer(gpt2, chat_template=None)
    with pytest.raises(InputError, match="tokenizer has no chat template"):
        made(none, chats(5))
    refusing = with_tokenizer(gpt2, chat_template="{{ raise_exception('no system') }}")
    with pytest.raises(InputError, match="the chat template refuses user: no system"):
        prompt_pieces(refusing.tokenizer, [{"role": "user", "content": "a"}], "all", "row 1")


def test_law02_another_chat_template_is_another_base(gpt2: Base) -> None:
    delta, _, _ = learn(gpt2, made(gpt2, chats(5)), LoRA(values_lr=0.02), 50)
    assert predict(gpt2, delta, chats(1))
    other = with_tokenizer(gpt2, chat_template=TEMPLATE.replace("\n", " "))
    with pytest.raises(FingerprintError, match="'chat_template' is"):
        predict(other, delta, chats(1))


def test_a_base_that_is_no_causal_language_model_is_refused(gpt2: Base) -> None:
    from transformers import BertConfig, BertForMaskedLM, GPT2Model

    tokenizer = text_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    masked = dataclasses.replace(load(BertForMaskedLM(config)), tokenizer=tokenizer)
    with pytest.raises(UnsupportedError, match="BertForMaskedLM is no causal language model"):
        made(masked, sounds(5))
    assert isinstance(gpt2.model, GPT2LMHeadModel)
    body = dataclasses.replace(load(GPT2Model(gpt2.model.config)), tokenizer=tokenizer)
    with pytest.raises(UnsupportedError, match=r"no logits of tokens; .*load_language_model"):
        made(body, sounds(5))
    endless = with_tokenizer(gpt2, tokens={"eos_token": None})
    with pytest.raises(InputError, match="has no end-of-text token"):
        made(endless, sounds(5))
    with pytest.raises(ConfigError, match="does not go with kind 'text'"):
        TaskConfig(kind="text", labels=("a", "b"))


def test_language_inputs_are_checked() -> None:
    fields: dict[str, Any] = {"kind": "text", "call": "language", "fields": ("prompt",)}
    fields |= {"targets": ("completion",), "head": None}
    language = LanguageInput("completion", "<eos>")
    assert Signature(**fields, language=language).outputs is None
    for changes, message in (
        ({"language": None}, "goes with the call 'language'"),
        ({"head": "head"}, "kind 'text' has no head"),
        ({"targets": ()}, "the form 'completion', and only it, has one target"),
        ({"language": LanguageInput("text", "<eos>")}, "the form 'completion', and only it"),
    ):
        with pytest.raises(InputError, match=message):
            Signature(**{**fields, "language": language, **changes})
    with pytest.raises(InputError, match="max_new_tokens 0 must be 1 or more"):
        LanguageInput("text", "<eos>", max_new_tokens=0)
    with pytest.raises(InputError, match=r"language.end is empty"):
        LanguageInput("text", "")


@pytest.mark.usefixtures("untyped")
def test_unknown_forms_are_named() -> None:
    with pytest.raises(InputError, match="unknown form of text 'completions'; did you mean"):
        LanguageInput("completions", "<eos>")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown turns 'lst'; did you mean 'last'"):
        LanguageInput("messages", "<eos>", "lst")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": {}}, "language: the key 'form' is missing"),
        ({"language": [1]}, "'language' must be a mapping or null"),
        ({"language": {**LANGUAGE, "max_new_tokens": True}}, "'max_new_tokens' must be an integer"),
        ({"language": {**LANGUAGE, "begin": "x"}}, "language: unknown key 'begin'"),
        ({"language": {**LANGUAGE, "max_new_tokens": -1}}, "max_new_tokens -1 must be 1 or more"),
        ({"language": None}, "goes with the call 'language'"),
        ({"kind": "vector"}, "'vector' does not go with the call 'language'"),
    ],
)
def test_malformed_signatures_are_named(change: dict[str, Any], message: str) -> None:
    language = LanguageInput("text", "<eos>")
    made = Signature(
        kind="text", call="language", fields=("t",), targets=(), head=None, language=language
    )
    with pytest.raises(DeltaError, match=message):
        Signature.from_json({**made.to_json(), **change})
