"""Prompts and prefixes to and from PEFT: its own models are the oracle, after training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from graftwork.bases import Base, load
from graftwork.deltas import Delta, Update, dumps, fingerprint_of, loads, port_of, values_of, view
from graftwork.errors import FingerprintError, GraftworkError, UnsupportedError
from graftwork.formats import ExportOptions, ImportOptions, export_merged, export_peft, import_peft
from graftwork.nn import Head
from graftwork.tuning import Attachment, Bottlenecks, PrefixTuning, PromptTuning, Tuner, as_delta
from tests.formats.oracles import MODELS, peft_logits, trained
from tests.formats.test_peft_adversarial import drop, edit_config, edit_tensors, every, put, rename
from tests.tuning.support import train

ADAPTERS = {
    "prompt_bert": ("bert", PromptTuningConfig(task_type="FEATURE_EXTRACTION")),
    "prompt_bert_scores": ("bert-scores", PromptTuningConfig(task_type="SEQ_CLS")),
    "prompt_gpt2": ("gpt2", PromptTuningConfig(task_type="CAUSAL_LM")),
    "prompt_llama": ("llama", PromptTuningConfig(task_type="CAUSAL_LM")),
    "prompt_llama_scores": ("llama-scores", PromptTuningConfig(task_type="SEQ_CLS")),
    # PEFT reserves a second prompt for the decoder, and never reads it
    "prompt_t5": ("t5", PromptTuningConfig(task_type="SEQ_2_SEQ_LM")),
    "p_tuning_mlp": ("gpt2", PromptEncoderConfig(task_type="CAUSAL_LM", encoder_hidden_size=16)),
    "p_tuning_lstm": (
        "llama",
        PromptEncoderConfig(
            task_type="CAUSAL_LM", encoder_reparameterization_type="LSTM", encoder_hidden_size=8
        ),
    ),
    "prefix_gpt2": ("gpt2", PrefixTuningConfig(task_type="CAUSAL_LM")),
    "prefix_llama": ("llama", PrefixTuningConfig(task_type="CAUSAL_LM")),
    "prefix_llama_scores": ("llama-scores", PrefixTuningConfig(task_type="SEQ_CLS")),
    "prefix_projected": (
        "llama",
        PrefixTuningConfig(task_type="CAUSAL_LM", prefix_projection=True, encoder_hidden_size=16),
    ),
}
"""As in test_peft_import: every kind that PEFT supports, on every model that runs it."""

CORE = ("prompt_bert_scores", "prompt_t5", "p_tuning_mlp", "prefix_llama")
EVERY = [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in ADAPTERS]


def config_of(name: str) -> Any:
    return dataclasses.replace(ADAPTERS[name][1], num_virtual_tokens=12 if "t5" in name else 3)


@pytest.mark.parametrize("name", EVERY)
def test_logits_agree_with_peft_both_ways(name, tmp_path):
    model = f"prompt-{ADAPTERS[name][0]}"
    rate = 0.5 if "t5" in name else 5e-2
    found = trained(model, config_of(name), tmp_path / "theirs", rate=rate)
    case, near = MODELS[model], 1e-6 * max(1.0, float(found.logits.abs().max()))
    base = load(case.build())
    delta = loads(dumps(import_peft(found.folder, base)))
    with torch.no_grad():
        plain = case.call(base.model, found.inputs)
        ours = case.call(view(base, delta), found.inputs)
    assert (plain - found.logits).abs().max() > 0.05
    assert (ours - found.logits).abs().max() <= near
    export_peft(delta, base, tmp_path / "ours")
    assert (peft_logits(model, tmp_path / "ours") - found.logits).abs().max() <= near
    theirs = load_file(found.folder / "adapter_model.safetensors")
    written = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    vectors = written["prompt_embeddings"]
    assert torch.equal(vectors, theirs["prompt_embeddings"][: len(vectors)])
    assert len(vectors) == config_of(name).num_virtual_tokens


TUNERS: dict[str, tuple[Tuner, str, str]] = {
    "prompt on bert": (PromptTuning(length=3, values_lr=5e-2), "bert", "FEATURE_EXTRACTION"),
    "prompt on gpt2": (PromptTuning(length=3, values_lr=5e-2), "gpt2", "CAUSAL_LM"),
    "prompt on llama": (PromptTuning(length=3, values_lr=5e-2), "llama", "CAUSAL_LM"),
    "prompt on t5": (PromptTuning(length=12, values_lr=0.5), "t5", "SEQ_2_SEQ_LM"),
    "prefix on gpt2": (PrefixTuning(length=3, values_lr=5e-2), "gpt2", "CAUSAL_LM"),
    "prefix on llama": (PrefixTuning(length=3, values_lr=5e-2), "llama", "CAUSAL_LM"),
}


def delta_of(base: Base, attachment: Attachment) -> Delta:
    return as_delta(base, attachment.extract(), ports=attachment.ports())


def learnt(tuner: Tuner, base: Base, model: str) -> Delta:
    """Train for 60 steps, until the loss is down by 30 % or more."""
    case = MODELS[model]
    attachment = tuner.attach(base, [], seed=0)
    losses: list[float] = []

    def loss(module: torch.nn.Module, step: int) -> Tensor:
        batch = case.batch(32, seed=step + 1)
        value = F.cross_entropy(case.call(module, batch.inputs), batch.targets)
        losses.append(value.item())
        return value

    delta = delta_of(base, train(tuner, attachment, loss, 60))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    return delta


@pytest.mark.parametrize("name", TUNERS)
def test_what_our_tuners_learn_peft_runs(name, tmp_path):
    tuner, model, task = TUNERS[name]
    case = MODELS[f"prompt-{model}"]
    base = load(case.build())
    delta = learnt(tuner, base, f"prompt-{model}")
    with pytest.raises(UnsupportedError, match="only in the class of a task: name it with task"):
        export_peft(delta, base, tmp_path / "out")
    export_peft(delta, base, tmp_path / "out", ExportOptions(task_type=task))
    # in float64, where no rounding of the two ways to add a product hides a fault
    wide = load(case.build(), dtype=torch.float64)
    again = import_peft(tmp_path / "out", base)
    assert again.provenance["task_type"] == task
    assert list(again.ports) == list(delta.ports)
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad():
        plain, ours, returned = (
            case.call(module, inputs)
            for module in (wide.model, view(wide, delta), view(wide, again))
        )
    assert (ours - plain).abs().max() > 0.05
    near = 1e-6 * max(1.0, float(ours.abs().max()))
    theirs = peft_logits(f"prompt-{model}", tmp_path / "out", torch.float64)
    assert (theirs - ours).abs().max() <= near
    assert (returned - ours).abs().max() <= near


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> Path:
    """A trained prompt of `bert-scores` with its classifier, as PEFT wrote it."""
    folder = tmp_path_factory.mktemp("scores")
    return trained("prompt-bert-scores", config_of("prompt_bert_scores"), folder, rate=5e-2).folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    return trained("prompt-llama", config_of("prefix_llama"), folder, rate=5e-2).folder


@pytest.fixture(scope="module")
def bert() -> Base:
    return load(MODELS["prompt-bert-scores"].build())


@pytest.fixture(scope="module")
def llama() -> Base:
    return load(MODELS["prompt-llama"].build())


def test_what_is_stamped(scores, bert):
    delta = import_peft(scores, bert)
    (name,) = delta.ports
    assert name == "prompt:embeddings.word_embeddings.weight"
    assert delta.fingerprint.asserted
    assert set(delta.fingerprint.tensors) == {*delta.updates, name.removeprefix("prompt:")}
    assert {n.rpartition(".")[0] for n in delta.updates} == {"classifier"}
    other = load(MODELS["prompt-bert-scores"].build(seed=5))
    with pytest.raises(FingerprintError, match="made for another base"):
        view(other, delta)
    half = import_peft(scores, bert, ImportOptions(stored="float16"))
    stored = half.ports[name].tensors["vectors"]
    assert isinstance(stored, Tensor)
    assert stored.dtype == torch.float16


def test_the_random_state_stays(scores, bert):
    before = torch.get_rng_state()
    import_peft(scores, bert)
    assert torch.equal(torch.get_rng_state(), before)


VECTORS = "prompt_embeddings"
PROMPT_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vectors lost": (
        lambda f: edit_tensors(f, drop(VECTORS)),
        "file has no 'prompt_embeddings', which hold its prompt",
    ),
    "vectors under another name": (
        lambda f: edit_tensors(f, rename(VECTORS, "prompt_encoder.default.embedding.weight")),
        "'prompt_encoder.default.embedding.weight' does not begin with 'base_model.'",
    ),
    "three axes": (
        lambda f: edit_tensors(f, put(VECTORS, torch.ones(1, 3, 16))),
        "has shape (1, 3, 16); the base and num_virtual_tokens of the config want (3, 16)",
    ),
    "another width": (
        lambda f: edit_tensors(f, put(VECTORS, torch.ones(3, 8))),
        "has shape (3, 8); the base and num_virtual_tokens of the config want (3, 16)",
    ),
    "another num_virtual_tokens": (
        lambda f: edit_config(f, {"num_virtual_tokens": 4}),
        "has shape (3, 16); the base and num_virtual_tokens of the config want (4, 16)",
    ),
    "no num_virtual_tokens": (
        lambda f: edit_config(f, {"num_virtual_tokens": None}),
        "num_virtual_tokens is None, it must be a whole number of 1 or more",
    ),
    "num_virtual_tokens 0": (
        lambda f: edit_config(f, {"num_virtual_tokens": 0}),
        "num_virtual_tokens is 0, it must be a whole number of 1 or more",
    ),
    "another token_dim": (
        lambda f: edit_config(f, {"token_dim": 32}),
        "token_dim is 32, the base's input embeddings have 16",
    ),
    "a prompt before the decoder": (
        lambda f: edit_config(f, {"num_transformer_submodules": 2}),
        "num_transformer_submodules is 2 under task_type 'SEQ_CLS'",
    ),
    "a task that drops token types": (
        lambda f: edit_config(f, {"task_type": "FEATURE_EXTRACTION"}),
        "PEFT drops token types under task_type 'FEATURE_EXTRACTION', and the base reads 2",
    ),
    "NaN": (
        lambda f: edit_tensors(f, put(VECTORS, torch.full((3, 16), torch.nan))),
        "'prompt_embeddings' holds NaN or infinity",
    ),
    "LoRA's factors": (
        lambda f: edit_tensors(f, put("base_model.bert.x.lora_A.weight", torch.ones(2, 16))),
        "lora_A.weight' cannot be honoured",
    ),
    "a classifier lost": (
        lambda f: edit_tensors(
            f, drop("base_model.classifier.weight", "base_model.classifier.bias")
        ),
        "modules_to_save names 'classifier', but the file stores nothing of it",
    ),
    "a tensor nobody explains": (
        lambda f: edit_tensors(f, put("base_model.bert.pooler.dense.weight", torch.ones(16, 16))),
        "stores 'bert.pooler.dense.weight' whole, and nothing in its config says",
    ),
    "keys of LoRA": (
        lambda f: edit_tensors(
            f, every(lambda k: k.replace("base_model.", "base_model.model.", 1))
        ),
        "the head 'model.classifier' is no part of the base, and under a prompt",
    ),
    "an option of another method": (
        lambda f: edit_config(f, {"use_dora": True}),
        "option 'use_dora' is True, which cannot be honoured",
    ),
    "several prompts in one": (
        lambda f: edit_config(f, {"peft_type": "MULTITASK_PROMPT_TUNING"}),
        "peft_type is 'MULTITASK_PROMPT_TUNING'; LORA",
    ),
    "a prefix of an encoder": (
        lambda f: edit_config(f, {"peft_type": "PREFIX_TUNING", "token_dim": None}),
        "has shape (3, 16); the base and num_virtual_tokens of the config want (3, 64)",
    ),
}
PREFIX_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another depth": (
        lambda f: edit_config(f, {"num_layers": 4}),
        "num_layers is 4, the base's keys and values want 2",
    ),
    "heads of queries": (
        lambda f: edit_config(f, {"num_attention_heads": 2}),
        "num_attention_heads is 2, the base's keys and values want 1",
    ),
    "another token_dim": (
        lambda f: edit_config(f, {"token_dim": 16}),
        "token_dim is 16, the base's keys and values want 8",
    ),
    "a reparametrisation left over": (
        # the vectors that go into the network, instead of what it gives
        lambda f: edit_tensors(f, put(VECTORS, torch.ones(3, 8))),
        "has shape (3, 8); the base and num_virtual_tokens of the config want (3, 32)",
    ),
    "an encoder and a decoder": (
        lambda f: edit_config(f, {"num_transformer_submodules": 2}),
        "num_transformer_submodules is 2: a prefix of an encoder and a decoder has no port",
    ),
}


@pytest.mark.parametrize("name", PROMPT_FOLDERS)
def test_one_clear_error_about_a_prompt(name, scores, bert, tmp_path):
    spoil, message = PROMPT_FOLDERS[name]
    spoilt(spoil, message, scores, bert, tmp_path / "adapter")


@pytest.mark.parametrize("name", PREFIX_FOLDERS)
def test_one_clear_error_about_a_prefix(name, prefix, llama, tmp_path):
    spoil, message = PREFIX_FOLDERS[name]
    spoilt(spoil, message, prefix, llama, tmp_path / "adapter")


def spoilt(
    spoil: Callable[[Path], Any], message: str, good: Path, base: Base, folder: Path
) -> None:
    shutil.copytree(good, folder)
    import_peft(folder, base)
    spoil(folder)
    with pytest.raises(GraftworkError) as caught:
        import_peft(folder, base)
    assert message in str(caught.value)


def test_a_prefix_on_a_base_that_reads_no_past_keys(prefix, tmp_path):
    base = load(MODELS["prompt-t5"].build())
    folder = tmp_path / "adapter"
    shutil.copytree(prefix, folder)
    edit_config(folder, {"num_layers": 1, "num_attention_heads": 2, "token_dim": 16})
    edit_tensors(folder, put(VECTORS, torch.ones(3, 32)))
    with pytest.raises(UnsupportedError, match="it is no causal decoder"):
        import_peft(folder, base)


def test_a_head_outside_the_base_reads_other_positions(scores, tmp_path):
    whole = MODELS["prompt-bert-scores"].build()
    with pytest.raises(UnsupportedError, match="reads position 0, which is the prompt's own"):
        import_peft(scores, load(whole.bert))
    torch.manual_seed(0)
    base = load(MODELS["prompt-llama"].build().model)
    port = port_of(Head(16, 2), "head", {"in_features": 16, "out_features": 2}, "float32")
    for tuner, message in (
        (PromptTuning(length=2), "reads the last position, padding too"),
        (PrefixTuning(length=2), "'score' of the task model has none"),
    ):
        delta = delta_of(base, tuner.attach(base, [], seed=0))
        delta = dataclasses.replace(delta, ports={**delta.ports, "head": port})
        with pytest.raises(UnsupportedError, match=message):
            export_peft(delta, base, tmp_path / "out", ExportOptions(task_type="SEQ_CLS"))


def test_a_prefix_and_a_head_go_into_the_task_model(prefix, tmp_path):
    """The scores of PEFT's model, whose head the base lacks, are those of our head."""
    whole = MODELS["prompt-llama-scores"].build()
    config = config_of("prefix_llama_scores")
    found = trained("prompt-llama-scores", config, tmp_path / "theirs", rate=5e-2)
    base = load(whole.model)
    delta = import_peft(found.folder, base)
    assert sorted(port.kind for port in delta.ports.values()) == ["head", "prefix"]
    export_peft(delta, base, tmp_path / "ours")
    theirs = load_file(found.folder / "adapter_model.safetensors")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert sorted(theirs) == sorted(ours)
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    near = 1e-6 * max(1.0, float(found.logits.abs().max()))
    logits = peft_logits("prompt-llama-scores", tmp_path / "ours")
    assert (logits - found.logits).abs().max() <= near


def test_what_peft_cannot_hold_beside_a_prompt(llama, tmp_path):
    delta = delta_of(llama, PromptTuning(length=2).attach(llama, [], seed=0))
    options = ExportOptions(task_type="CAUSAL_LM")
    scale = {"norm.weight": Update((16,), scale=torch.full((16,), 2.0))}
    both = dataclasses.replace(delta, updates=scale)
    both = dataclasses.replace(both, fingerprint=fingerprint_of(llama, both.updates, both.ports))
    with pytest.raises(
        UnsupportedError, match="PEFT cannot hold a scale beside a prompt or prefix"
    ):
        export_peft(both, llama, tmp_path / "out", options)
    inside = Bottlenecks().attach(llama, ["layers.0.mlp.down_proj.weight"], seed=0)
    ports = {**delta.ports, **inside.ports()}
    several = dataclasses.replace(delta, ports=ports)
    several = dataclasses.replace(several, fingerprint=fingerprint_of(llama, [], ports))
    with pytest.raises(UnsupportedError, match="cannot hold the port 'bottleneck:"):
        export_peft(several, llama, tmp_path / "out", options)
    with pytest.raises(UnsupportedError, match="cannot hold the port 'prompt:"):
        export_merged(delta, llama, tmp_path / "out")
    two = dataclasses.replace(
        delta, ports={**delta.ports, "prefix:embed_tokens.weight": prefix_port(llama)}
    )
    with pytest.raises(UnsupportedError, match="cannot hold the port 'prefix:"):
        export_peft(two, llama, tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def prefix_port(base: Base) -> Any:
    (port,) = PrefixTuning(length=2).attach(base, [], seed=0).ports().values()
    return port


def test_another_table_of_as_many_rows_is_not_taken_for_the_words(tmp_path):
    """PEFT looks for a parameter with a row for each word, and takes the first."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)

    class Odd(LlamaModel):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            words = self.embed_tokens
            del self.embed_tokens
            self.places = torch.nn.Embedding(config.vocab_size, config.hidden_size)
            self.embed_tokens = words

    base = load(Odd(MODELS["prompt-llama"].build().config))
    delta = delta_of(base, PromptTuning(length=2).attach(base, [], seed=0))
    with pytest.raises(UnsupportedError, match=r"PEFT takes '\w+.weight' for the word embeddings"):
        export_peft(delta, base, tmp_path / "out", ExportOptions(task_type="FEATURE_EXTRACTION"))


def test_eight_bit_vectors_go_out_in_float32(llama, tmp_path):
    delta = delta_of(llama, PrefixTuning(length=2).attach(llama, [], seed=0))
    ((name, port),) = delta.ports.items()
    from graftwork.deltas import quantise

    values = values_of(port.tensors["vectors"])
    small = dataclasses.replace(port, tensors={"vectors": quantise(values, "int8")})
    delta = dataclasses.replace(delta, ports={name: small})
    export_peft(delta, llama, tmp_path / "out", ExportOptions(task_type="CAUSAL_LM"))
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")[VECTORS]
    assert written.dtype == torch.float32
    again = import_peft(tmp_path / "out", llama).ports[name].tensors["vectors"]
    assert torch.equal(values_of(again), values_of(small.tensors["vectors"]))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["token_dim"] == 8
    assert config["num_attention_heads"] == 1
