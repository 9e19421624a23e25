"""LoRA's branches against explicit weights `W + factor * B A`, built here by naive loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tests.tuning.support import after_resume, bits, plain_base, run_stage
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from graftwork._errors import ConfigError, UnknownNameError, UnsupportedError, UnusedTensorError
from graftwork.deltas import NameMap, Piece, values_of, view
from graftwork.tuning import LoRA, adam, as_delta

WORDS, WIDTH = 11, 6


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Tied(nn.Module):
    """An embedding whose table is the output layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.out = nn.Linear(WIDTH, WORDS)
        self.out.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.embedding(words)))


class ReadsWeight(nn.Module):
    """Asks its layer for the type, then runs it; and reads another layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.run, self.held = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.run.weight, torch.Tensor)
        x = x.to(self.run.weight.dtype).view(-1, self.run.weight.shape[1])
        return torch.addmm(self.held.bias, self.run(x), self.held.weight.t())


class Own(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, torch.tanh(self.weight), self.bias)


def images(channels: int, seed: int = 0) -> torch.Tensor:
    return matrix(2, channels, 7, 5, seed=seed)


LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), lambda: matrix(2, 3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 7, bias=False), lambda: matrix(4, 5)),
    "own forward": (lambda: Own(5, 7), lambda: matrix(4, 5)),
    "conv1d of gpt2": (lambda: Conv1D(7, 5), lambda: matrix(2, 3, 5)),
    "embedding": (
        lambda: nn.Embedding(WORDS, WIDTH, padding_idx=2),
        lambda: torch.tensor([[1, 2, 3], [1, 10, 2]]),
    ),
    "normed embedding": (
        lambda: nn.Embedding(WORDS, WIDTH, max_norm=1.0),
        lambda: torch.tensor([[1, 2, 3], [1, 10, 2]]),
    ),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: images(4)),
    "strided conv": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2), lambda: images(4)),
    "grouped conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: images(4)),
    "depthwise conv": (lambda: nn.Conv2d(4, 4, 3, groups=4), lambda: images(4)),
    "mirrored conv": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        lambda: images(4),
    ),
    "one image": (lambda: nn.Conv2d(4, 6, 3), lambda: images(4)[0]),
    "conv in 1": (lambda: nn.Conv1d(4, 6, 3, padding="same"), lambda: matrix(2, 4, 9)),
    "conv in 3": (lambda: nn.Conv3d(2, 3, 2), lambda: matrix(2, 2, 4, 4, 4)),
    "transposed conv": (lambda: nn.ConvTranspose2d(4, 6, 3), lambda: images(4)),
    "tied": (Tied, lambda: torch.tensor([[1, 2, 3], [1, 10, 4]])),
    "weight read": (ReadsWeight, lambda: matrix(3, 4)),
}
BRANCHES = dict.fromkeys(LAYERS, 1) | {"own forward": 0, "normed embedding": 0}
BRANCHES |= {"transposed conv": 0, "weight read": 2}


def made(name: str, **options):
    build, inputs = LAYERS[name]
    torch.manual_seed(0)
    base = plain_base(build())
    tuner = LoRA(**{"rank": 2, "alpha": 3.0, **options})
    attachment = tuner.attach(base, list(base.names.pieces), seed=1)
    return base, attachment, inputs()


def fill(attachment) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(attachment):
            parameter.copy_(0.3 * matrix(*parameter.shape, seed=i + 1))
    attachment.prepare(0.0, seed=0)


def explicit(base, attachment, factor: float) -> dict[str, torch.Tensor]:
    """W' of every target by loops over rank, with gradients to fresh copies of the factors."""
    state = attachment.tensors()
    weights: dict[str, torch.Tensor] = {}
    for name in {key.partition("/")[0] for key in state}:
        left = state[f"{name}/block_0.left"].clone().requires_grad_()
        right = state[f"{name}/block_0.right"].clone().requires_grad_()
        weight = base.model.get_parameter(name)
        out = weight.clone()
        for k in range(left.shape[1]):
            out = out + factor * torch.outer(left[:, k], right[k]).reshape(weight.shape)
        weights[name] = out
        weights[f"{name}/leaves"] = (left, right)
    return weights


@pytest.mark.parametrize("name", LAYERS)
def test_a_branch_is_the_adapted_weight_and_so_are_its_gradients(name):
    base, attachment, inputs = made(name)
    before = bits(base.model)
    assert attachment.report()["branches"] == BRANCHES[name]
    fill(attachment)
    weights = explicit(base, attachment, 3.0 / 2)
    leaves = {k.partition("/")[0]: weights.pop(k) for k in list(weights) if "/" in k}
    wanted = functional_call(base.model, weights, (inputs,), tie_weights=True)
    found = attachment.module(inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    towards = matrix(*found.shape, seed=9)
    (found * towards).sum().backward()
    (wanted * towards).sum().backward()
    attachment.collect()
    trained = dict(zip(sorted(leaves), _pairs(attachment), strict=True))
    for key, (left, right) in leaves.items():
        if name == "embedding":  # its padding row is no function of A here, so B sees it, W' not
            right.grad = None
        for mine, theirs in zip(trained[key], (left, right), strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        delta = as_delta(base, attachment.extract("float32"))
        torch.testing.assert_close(view(base, delta)(inputs), wanted, rtol=1e-5, atol=1e-6)
    assert bits(base.model) == before


def _pairs(attachment) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """(left, right) of every target, by sorted name."""
    found = sorted(attachment._targets, key=lambda target: target.name)
    return [(t.blocks[0].factors.left, t.blocks[0].factors.right) for t in found]


@pytest.mark.parametrize("name", LAYERS)
def test_training_starts_at_the_base_to_the_bit(name):
    base, attachment, inputs = made(name, rank=3)
    with torch.no_grad():
        assert torch.equal(attachment.module(inputs), base.model(inputs))
    assert attachment.extract() == {}


def test_a_is_drawn_as_in_the_authors_code_and_b_is_zero():
    torch.manual_seed(0)
    base = plain_base(nn.Sequential(nn.Linear(400, 300), Conv1D(300, 400)))
    state = LoRA(rank=8).attach(base, list(base.names.pieces), seed=0).tensors()
    for a, b, fan in (("0.weight/block_0.right", "0.weight/block_0.left", 400),
                      ("1.weight/block_0.left", "1.weight/block_0.right", 400)):  # fmt: skip
        assert not state[b].any()
        bound = 1 / math.sqrt(fan)
        assert 0.99 * bound < state[a].abs().max() <= bound
        assert state[a].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    same = LoRA(rank=8).attach(base, ["1.weight"], seed=0).tensors()
    assert torch.equal(same["1.weight/block_0.left"], state["1.weight/block_0.left"])
    other = LoRA(rank=8).attach(base, ["1.weight"], seed=1).tensors()
    assert not torch.equal(other["1.weight/block_0.left"], state["1.weight/block_0.left"])


def test_ranks_and_alphas_by_pattern_and_the_count_of_the_paper():
    torch.manual_seed(0)
    layers = [nn.ModuleDict({n: nn.Linear(48, 48) for n in "qkv"}) for _ in range(3)]
    base = plain_base(nn.ModuleList(layers))
    plain = LoRA(rank=8).attach(base, base.names.match(["*.q.weight", "*.v.weight"]), seed=0)
    assert plain.report()["values"] == 2 * (2 * 3) * 48 * 8  # 2 L d r, L = 6 matrices
    tuner = LoRA(rank=4, alpha=8.0, ranks={"*.q.*": 2, "0.q.*": 6}, alphas={"*.v.*": 1.0})
    attachment = tuner.attach(base, base.names.match(["*weight"]), seed=0)
    fill(attachment)
    terms = {n: u.low_rank for n, u in attachment.extract().items()}
    assert {n: t.rank for n, t in terms.items() if n.startswith(("0", "1"))} == {
        "0.q.weight": 6, "0.k.weight": 4, "0.v.weight": 4,
        "1.q.weight": 2, "1.k.weight": 4, "1.v.weight": 4,
    }  # fmt: skip
    assert terms["0.q.weight"].factor == 8.0 / 6
    assert terms["2.v.weight"].factor == 1.0 / 4
    stable = LoRA(rank=4, alpha=8.0, stabilised=True).attach(base, ["0.q.weight"], seed=0)
    fill(stable)
    assert stable.extract()["0.q.weight"].low_rank.factor == 8.0 / math.sqrt(4)
    with pytest.raises(UnknownNameError, match=r"target pattern in ranks: '\*query\*'"):
        LoRA(ranks={"*query*": 2}).attach(base, ["0.q.weight"], seed=0)


def test_a_rank_above_the_smaller_side_is_cut_and_alpha_with_it():
    base = plain_base(nn.Linear(9, 3))
    attachment = LoRA(rank=8, alpha=6.0).attach(base, ["weight"], seed=0)
    fill(attachment)
    term = attachment.extract()["weight"].low_rank
    assert (term.rank, term.factor) == (3, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: 1 or more"),
        ({"ranks": {"*": -1}}, r"ranks\['\*'\]: 1 or more"),
        ({"alpha": 0.0}, "alpha: above 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"b_ratio": 0.0}, "b_ratio: above 0"),
        ({"blocks": {"*": "000"}}, "one digit a block"),
        ({"blocks": {"*": "q-v"}}, "one digit a block"),
    ],
)
def test_impossible_values_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**options)


@pytest.mark.usefixtures("untyped")
def test_an_unknown_start_is_named():
    with pytest.raises(UnknownNameError, match="unknown start 'pissa'"):
        LoRA(start="pissa")


def test_vectors_are_left_or_trained_and_nothing_else_is_an_error():
    base = plain_base(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    names = list(base.names.pieces)
    assert LoRA().attach(base, names, seed=0).report()["tensors"] == 1
    attachment = LoRA(vectors="train").attach(base, names, seed=0)
    assert attachment.report() == {"values": 3 * 4 + 3 * 3 + 9, "tensors": 4, "branches": 1}
    attachment.module(matrix(2, 4)).square().sum().backward()
    attachment.collect()
    fill(attachment)
    updates = attachment.extract("float32")
    assert {n: u.terms for n, u in updates.items()} == {
        "0.weight": ("low_rank",), "0.bias": ("dense",),
        "1.weight": ("dense",), "1.bias": ("dense",),
    }  # fmt: skip
    x = matrix(2, 4)
    with torch.no_grad():
        adapted = view(base, as_delta(base, updates))(x)
        torch.testing.assert_close(adapted, attachment.module(x))
    with pytest.raises(ConfigError, match="none of the 3 targets is a matrix"):
        LoRA().attach(base, ["0.bias", "1.weight", "1.bias"], seed=0)


@pytest.mark.parametrize("merged", ["linear", "conv1d"])
def test_blocks_of_a_merged_projection_have_pairs_of_their_own(merged):
    torch.manual_seed(0)
    base = plain_base(nn.Linear(8, 12) if merged == "linear" else Conv1D(12, 8))
    attachment = LoRA(rank=2, alpha=4.0, blocks={"weight": "101"}).attach(base, ["weight"], seed=0)
    assert attachment.report() == {"values": 2 * 2 * (8 + 4), "tensors": 1, "branches": 1}
    fill(attachment)
    state = attachment.tensors()
    change = torch.zeros(12, 8)
    for i, start in enumerate((0, 8)):
        left, right = (state[f"weight/block_{i}.{side}"] for side in ("left", "right"))
        product = left @ right if merged == "linear" else (left @ right).t()
        change[start : start + 4] = 2.0 * product
    weight = base.model.weight if merged == "linear" else base.model.weight.t()
    x = matrix(5, 8)
    wanted = F.linear(x, weight + change, base.model.bias)
    torch.testing.assert_close(attachment.module(x), wanted)
    update = attachment.extract("float32")["weight"]
    assert update.low_rank.rank == 4
    found = update.adapted(base.model.weight)
    torch.testing.assert_close(found if merged == "linear" else found.t(), weight + change)
    with pytest.raises(ConfigError, match="would cut 'weight' into 5 equal parts"):
        LoRA(blocks={"*": "10101"}).attach(base, ["weight"], seed=0)


def test_pieces_of_a_fused_weight_are_targets_of_their_own():
    """Query and value are stored apart and fused by the loader: rows of one parameter."""
    torch.manual_seed(0)
    model = nn.Linear(6, 9)
    pieces = {
        n: Piece(n, "weight", (3, 6), (6, 1), 18 * i, whole=False) for i, n in enumerate("qkv")
    }
    base = plain_base(model, NameMap(pieces))
    attachment = LoRA(rank=2, alpha=2.0).attach(base, ["q", "v"], seed=0)
    assert attachment.report()["branches"] == 1
    fill(attachment)
    state = attachment.tensors()
    weight = model.weight.clone()
    for name, start in (("q", 0), ("v", 6)):
        weight[start : start + 3] += state[f"{name}/block_0.left"] @ state[f"{name}/block_0.right"]
    x = matrix(4, 6)
    wanted = F.linear(x, weight, model.bias)
    torch.testing.assert_close(attachment.module(x), wanted)
    with torch.no_grad():
        delta = as_delta(base, attachment.extract("float32"))
        torch.testing.assert_close(view(base, delta)(x), wanted)
    # columns are no outputs: the weight is computed instead, with the same result
    strided = {
        n: Piece(n, "weight", (9, 3), (6, 1), 3 * i, whole=False) for i, n in enumerate("ab")
    }
    base = plain_base(model, NameMap(strided))
    attachment = LoRA(rank=2, alpha=2.0).attach(base, ["a", "b"], seed=0)
    assert attachment.report()["branches"] == 0
    fill(attachment)
    attachment.module(x).square().sum().backward()
    attachment.collect()
    factors = {t.name: t.blocks[0].factors for t in attachment._targets}
    leaves = [p.detach().clone().requires_grad_() for n in "ab" for p in _two(factors[n])]
    change = torch.cat([leaves[0] @ leaves[1], leaves[2] @ leaves[3]], 1)
    wanted = F.linear(x, model.weight + change, model.bias)
    wanted.square().sum().backward()
    for mine, theirs in zip([p for n in "ab" for p in _two(factors[n])], leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    with torch.no_grad():
        torch.testing.assert_close(attachment.module(x), wanted)
        delta = as_delta(base, attachment.extract("float32"))
        torch.testing.assert_close(view(base, delta)(x), wanted)


def test_experts_that_the_loader_fuses_are_targets_by_their_stored_names():
    from transformers import MixtralConfig, MixtralForCausalLM

    from graftwork.bases import load

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = MixtralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=4
    )
    base = load(MixtralForCausalLM(config))
    names = base.names.match(["*experts.*"])
    assert "layers.0.block_sparse_moe.experts.3.w1.weight" in names
    tuner = LoRA(rank=2, values_lr=2e-2)
    alone = tuner.attach(base, names, seed=0)
    assert alone.report() == {"values": 12 * 2 * (16 + 24), "tensors": 12, "branches": 0}
    attachment = tuner.attach(base, list(base.names.pieces), seed=0)
    words = torch.randint(1, 30, (4, 6))
    losses = run_stage(
        attachment, tuner.stages[0], lambda m, _: m(input_ids=words, labels=words).loss, 80
    )
    assert losses[-1] < 0.7 * losses[0]
    assert set(names) <= set(attachment.extract())
    with torch.no_grad(), attachment.settled() as module:
        found = module.eval()(input_ids=words).logits
        wanted = view(base, as_delta(base, attachment.extract("float32")))(input_ids=words).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def _two(factors) -> tuple[nn.Parameter, nn.Parameter]:
    return factors.left, factors.right


def test_a_tied_weight_is_one_target_and_both_layers_have_it():
    base, attachment, words = made("tied")
    assert list(base.names.pieces) == ["embedding.weight", "out.bias"]
    fill(attachment)
    updates = attachment.extract("float32")
    assert list(updates) == ["embedding.weight"]
    weight = updates["embedding.weight"].adapted(base.model.out.weight)
    wanted = F.linear(torch.tanh(weight[words]), weight, base.model.out.bias)
    torch.testing.assert_close(attachment.module(words), wanted)


def test_asking_a_branch_for_its_type_computes_nothing():
    _, attachment, x = made("weight read")
    layer = attachment.module.run
    computed = []
    slot = vars(layer)["_graftwork_slots"]["weight"]
    adapted, slot.adapted = slot.adapted, lambda w: computed.append(1) or adapted(w)
    attachment.module(x)
    assert (layer.weight.dtype, layer.weight.device.type, layer.weight.dim()) == (
        torch.float32, "cpu", 2,
    )  # fmt: skip
    assert computed == []
    fill(attachment)
    wanted = attachment.extract("float32")["run.weight"].adapted(layer._parameters["weight"])
    torch.testing.assert_close(layer.weight + 0.0, wanted)
    assert len(computed) == 1
    torch.testing.assert_close(attachment.module.state_dict()["run.weight"] + 0.0, wanted)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_models_that_ask_layers_for_their_type_train_with_dropout_and_checkpointing(name):
    """T5 reads `wo.weight.dtype` at each step; recomputed activations run the branches again."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "num_attention_heads": 2}
    if name == "t5":
        config = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        model = T5ForConditionalGeneration(config)
        model.config.decoder_start_token_id = 0
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1))
    base = plain_base(model)
    words = torch.randint(1, 30, (4, 7))
    tuner = LoRA(rank=2, dropout=0.1, values_lr=2e-2)
    attachment = tuner.attach(base, list(base.names.pieces), seed=0)
    report = attachment.report()
    assert report["branches"] == report["tensors"] > 15
    attachment.module.activation_checkpointing_enable()
    attachment.module.train()
    losses = run_stage(
        attachment, tuner.stages[0], lambda m, _: m(input_ids=words, labels=words).loss, 60
    )
    assert losses[-1] < 0.7 * losses[0]
    attachment.module.activation_checkpointing_disable()
    with torch.no_grad(), attachment.settled() as module:
        found = module.eval()(input_ids=words, labels=words).logits
        delta = as_delta(base, attachment.extract("float32"))
        wanted = view(base, delta)(input_ids=words, labels=words).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_acts_on_the_branch_only():
    torch.manual_seed(0)
    base = plain_base(nn.Linear(400, 3))
    attachment = LoRA(rank=2, alpha=2.0, dropout=0.25).attach(base, ["weight"], seed=0)
    module, x = attachment.module.train(), torch.ones(1, 400)
    with torch.no_grad():
        assert torch.equal(module(x), base.model(x))  # B is zero, so any drawn mask adds nothing
        fill(attachment)
        left, right = (values_of(f) for f in _factors(attachment))
        torch.manual_seed(3)
        mask = F.dropout(x, 0.25)
        assert 0.15 < (mask == 0).float().mean() < 0.35
        torch.manual_seed(3)
        wanted = base.model(x) + F.linear(F.linear(mask, right), left)
        torch.testing.assert_close(module(x), wanted)
        plain = base.model(x) + F.linear(F.linear(x, right), left)
        torch.testing.assert_close(module.eval()(x), plain)


def _factors(attachment):
    state = attachment.tensors()
    return state["weight/block_0.left"], state["weight/block_0.right"]


def test_dropout_of_an_embedding_drops_tokens():
    torch.manual_seed(0)
    base = plain_base(nn.Embedding(WORDS, WIDTH))
    attachment = LoRA(rank=2, dropout=0.5).attach(base, ["weight"], seed=0)
    fill(attachment)
    words = torch.randint(0, WORDS, (40,))
    with torch.no_grad():
        whole = attachment.module.eval()(words) - base.model(words)
        some = attachment.module.train()(words) - base.model(words)
    kept = some.abs().sum(1) > 0
    assert 8 < int(kept.sum()) < 32
    torch.testing.assert_close(some[kept], 2.0 * whole[kept], rtol=1e-4, atol=1e-6)


def test_dropout_where_no_layer_runs_a_branch_is_an_error():
    attention = plain_base(nn.MultiheadAttention(8, 2, batch_first=True))
    with pytest.raises(UnsupportedError, match="'in_proj_weight' is consumed by Multihead"):
        LoRA(dropout=0.1).attach(attention, ["in_proj_weight"], seed=0)
    attachment = LoRA(dropout=0.1).attach(attention, ["out_proj.weight"], seed=0)
    x = matrix(2, 3, 8)
    attachment.module.eval()(x, x, x)
    with pytest.raises(UnsupportedError, match="is read by a kernel instead of run by its layer"):
        attachment.module.train()(x, x, x)


class Bypassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, idle: bool = False) -> torch.Tensor:
        x = self.used(x)
        return self.idle(x) if idle else x


def test_law07_a_target_that_the_forward_does_not_consume_is_an_error():
    base = plain_base(Bypassing())
    names = ["used.weight", "idle.weight"]
    x = matrix(3, 4)
    attachment = LoRA(rank=2).attach(base, names, seed=0)
    attachment.module(x).sum().backward()
    with pytest.raises(UnusedTensorError, match=r"1 targets were not consumed .*'idle.weight'"):
        attachment.collect()
    attachment.module(x, idle=True).sum().backward()
    attachment.collect()
    with attachment.settled() as module:
        module(x, idle=True)
    with pytest.raises(UnusedTensorError, match=r"'idle.weight'"), attachment.settled() as module:
        module(x)
    allowed = LoRA(rank=2, unused="allow").attach(base, names, seed=0)
    allowed.module(x).sum().backward()
    allowed.collect()
    with allowed.settled() as module:
        module(x)


def test_lora_plus_trains_b_faster():
    attachment = made("linear", b_ratio=8.0, values_lr=1e-3)[1]
    stage = LoRA(b_ratio=8.0, values_lr=1e-3).stages[0]
    assert {g.role: [tuple(p.shape) for p in g.parameters] for g in attachment.groups()} == {
        "values": [(2, 5)],
        "values_b": [(7, 2)],
    }
    rates = [group["lr"] for group in adam(stage, attachment).param_groups]
    assert rates == [1e-3, 8e-3]
    plain = made("linear")[1].groups()
    assert [g.role for g in plain] == ["values"]


def test_principal_start_is_the_best_rank_r_part_and_adds_nothing():
    torch.manual_seed(0)
    base = plain_base(nn.Linear(20, 12))
    before = bits(base.model)
    attachment = LoRA(rank=3, alpha=5.0, start="principal").attach(base, ["weight"], seed=0)
    state = attachment.tensors()
    u, s, vh = torch.linalg.svd(base.model.weight)
    best = u[:, :3] @ torch.diag(s[:3]) @ vh[:3]
    product = state["weight/block_0.left"] @ state["weight/block_0.right"] * 5.0 / 3
    torch.testing.assert_close(product, best, rtol=1e-4, atol=1e-6)
    x = matrix(4, 20)
    torch.testing.assert_close(attachment.module(x), base.model(x), rtol=1e-5, atol=1e-6)
    fill(attachment)
    state = attachment.tensors()
    change = (state["weight/block_0.left"] @ state["weight/block_0.right"]) * 5.0 / 3 - best
    update = attachment.extract("float32")["weight"]
    assert update.low_rank.rank == 6
    found = update.adapted(torch.zeros(12, 20))
    torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-5)
    assert bits(base.model) == before


def test_no_gradient_or_copy_of_a_whole_weight_exists():
    torch.manual_seed(0)
    base = plain_base(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)))
    attachment = LoRA(rank=2).attach(base, base.names.match(["*weight"]), seed=0)
    attachment.module(matrix(3, 64)).square().sum().backward()
    attachment.collect()
    for name, parameter in attachment.module.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert parameter.data_ptr() == base.model.get_parameter(name).data_ptr()
    assert max(p.numel() for p in attachment) == 128


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_are_wider_than_a_half_precision_base(dtype):
    torch.manual_seed(0)
    base = plain_base(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype))
    attachment = LoRA(rank=2, alpha=2.0).attach(base, base.names.match(["*weight"]), seed=0)
    fill(attachment)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in attachment} == {wide}
    x = matrix(3, 6).to(dtype)
    found = attachment.module(x)
    assert found.dtype == dtype
    found.float().square().sum().backward()
    attachment.collect()
    with torch.no_grad():
        adapted = view(base, as_delta(base, attachment.extract("float32")))(x)
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(found, adapted, rtol=tolerance, atol=tolerance)


def test_autocast_runs_the_branch_in_its_type():
    base, attachment, x = made("linear")
    fill(attachment)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attachment.module(x)
        wanted = view(base, as_delta(base, attachment.extract("float32")))(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"start": "principal"}, {"b_ratio": 4.0}])
def test_resume_in_the_middle_gives_the_same_bits(options):
    tuner = LoRA(rank=2, alpha=3.0, **options)

    def attach(seed: int):
        base, _, _ = made("linear", **options)
        return tuner.attach(base, list(base.names.pieces), seed=seed)

    def loss(attachment, step: int) -> torch.Tensor:
        return attachment.module(matrix(8, 5, seed=step)).sub(1.0).square().mean()

    whole, resumed = after_resume(attach, tuner.stages[0], loss)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_gradients_of_several_backward_passes_add_up():
    _, attachment, x = made("weight read")
    fill(attachment)
    attachment.module(x).square().sum().backward()
    attachment.module(2 * x).square().sum().backward()
    attachment.collect()
    twice = [p.grad.clone() for p in attachment]
    for p in attachment:
        p.grad = None
    (attachment.module(x).square().sum() + attachment.module(2 * x).square().sum()).backward()
    for p, wanted in zip(attachment, twice, strict=True):
        torch.testing.assert_close(p.grad, wanted)


def test_a_loss_that_misses_the_module_is_an_error():
    from graftwork._errors import TrainingError

    _, attachment, _ = made("linear")
    with pytest.raises(TrainingError, match="none of the 1 tuned tensors received a gradient"):
        attachment.collect()
    stage = SimpleNamespace(learning_rates={"values": 0.1})
    with pytest.raises(RuntimeError):
        run_stage(attachment, stage, lambda m, s: torch.zeros(()), 1)
