"""Stages of the tuners: counts, masks, resume, steering, warnings and errors."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.tuning.support import bits, optimiser_of, plain_base, run_stage, train
from torch import nn
from torch.nn import functional as F

from graftwork._errors import ConfigError, TrainingError, UnknownNameError, UnsupportedError
from graftwork.deltas import NameMap, Piece, Update, between, identity_names, values_of, view
from graftwork.tuning import (
    DiffPruning,
    FisherMask,
    Full,
    GradientMask,
    Head,
    LastLayer,
    Magnitude,
    RandomMask,
    TuningWarning,
    adam,
    as_delta,
    stages,
)

WORDS, WIDTH, CLASSES = 50, 12, 3


class Tagger(nn.Module):
    """Mean of embeddings, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(words).mean(1)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.out(hidden)


def base_of(dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return plain_base(Tagger().to(dtype))


def batch(step: int, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    words = torch.randint(0, 20, (rows, 4), generator=generator)  # rows 20.. are never touched
    return words, words[:, 0] % CLASSES


def loss(module: nn.Module, step: int) -> torch.Tensor:
    words, labels = batch(step)
    return F.cross_entropy(module(words), labels)


def names(base) -> list[str]:
    return list(base.names.pieces)


def dense(base, updates: dict[str, Update]) -> torch.Tensor:
    """The whole difference as one vector, in the order of the base."""
    parts = []
    for name, piece in base.names.pieces.items():
        weight = torch.zeros(piece.shape)
        parts.append((updates[name].adapted(weight) if name in updates else weight).view(-1))
    return torch.cat(parts)


SPARSE = {
    "random": RandomMask(share=0.07),
    "magnitude": Magnitude(share=0.07, values_lr=3e-3),
    "gradient": GradientMask(share=0.07),
    "fisher": FisherMask(share=0.07),
    "tensor": DiffPruning(share=0.07, gates_lr=0.2),
    "neuron": DiffPruning(share=0.07, gates_lr=0.2, groups="neuron"),
    "flat": DiffPruning(share=0.07, gates_lr=0.2, groups=None, draw="deterministic"),
    "expected": DiffPruning(share=0.07, gates_lr=0.2, draw="expected", start="dense"),
}


def trained(tuner, base, steps: int = 60, seed: int = 0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        return train(tuner, tuner.attach(base, names(base), seed=seed), loss, steps)


@pytest.mark.parametrize("name", SPARSE)
def test_exactly_k_values_and_nothing_else_moves(name):
    base = base_of()
    before = bits(base.model)
    attachment = trained(SPARSE[name], base)
    d = sum(p.numel() for p in base.model.parameters())
    for stored in ("float16", "int8", "float32"):
        updates = attachment.extract(stored)
        assert sum(u.sparse.positions.numel() for u in updates.values()) == d * 7 // 100
    kept = {n: set(u.sparse.positions.tolist()) for n, u in updates.items()}
    with attachment.settled() as module:
        for key, parameter in module.named_parameters():
            moved = (parameter != base.model.get_parameter(key)).view(-1).nonzero().squeeze(1)
            assert set(moved.tolist()) <= kept.get(key, set())
    assert bits(base.model) == before


def test_magnitude_keeps_the_largest_differences_of_full_fine_tuning():
    base = base_of()
    tuner = Magnitude(share=0.1, values_lr=3e-3)
    first = tuner.attach(base, names(base), seed=0)
    run_stage(first, tuner.stages[0], loss, 50)
    tuned = torch.cat([p.detach().view(-1) for p in first.module.parameters()])
    difference = tuned - torch.cat([p.view(-1) for p in base.model.parameters()])
    k = difference.numel() // 10
    order = sorted(range(difference.numel()), key=lambda i: (-abs(difference[i].item()), i))
    second = first.advance()
    updates = second.extract("float32")
    found = dense(base, updates)
    assert sorted(order[:k]) == found.nonzero().squeeze(1).tolist()
    torch.testing.assert_close(found[found != 0], difference[sorted(order[:k])], rtol=0, atol=1e-7)
    # and it is what `between` takes from the fine-tuned model
    taken = between(base, first.module, keep=0.1, stored="float32").updates
    assert torch.equal(dense(base, taken), found)


def test_scores_are_the_sums_they_say():
    base = base_of()
    for tuner, power in ((GradientMask(share=0.1, warmup=0.0), 1), (FisherMask(share=0.1), 2)):
        attachment = tuner.attach(base, names(base), seed=0)
        total = torch.zeros(sum(p.numel() for p in base.model.parameters()))
        for step in range(8):
            attachment.prepare(step / 8, seed=step)
            loss(attachment.module, step).backward()
            if step >= 8 * tuner.warmup:
                grads = [p.grad.view(-1).clone() for p in attachment.module.parameters()]
                total += torch.cat(grads) ** power
            attachment.collect()
        torch.testing.assert_close(attachment.tensors()["sums"], total)
        expected = total.abs().topk(total.numel() // 10).indices.sort().values
        assert torch.equal(attachment.advance().tensors()["positions"], expected)


def test_random_mask_is_a_function_of_its_seed_and_stored_as_one():
    base = base_of()
    one = RandomMask(share=0.1).attach(base, names(base), seed=3)
    same = RandomMask(share=0.1, mask_seed=3).attach(base, names(base), seed=99)
    other = RandomMask(share=0.1).attach(base, names(base), seed=4)
    positions = [a.tensors()["positions"] for a in (one, same, other)]
    assert torch.equal(positions[0], positions[1])
    assert not torch.equal(positions[0], positions[2])
    assert all(u.sparse.mask.seed == 3 for u in one.extract().values())


@pytest.mark.parametrize("name", ["random", "magnitude", "gradient", "tensor", "neuron"])
@pytest.mark.parametrize("at", [0, 1])
def test_resume_in_the_middle_of_a_stage_gives_the_same_bits(name, at):
    tuner = SPARSE[name]
    if at >= len(tuner.stages):
        pytest.skip("one stage")
    expected = resumed_run(tuner, at, interrupt=False)
    found = resumed_run(tuner, at, interrupt=True)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def resumed_run(tuner, at: int, *, interrupt: bool) -> dict[str, torch.Tensor]:
    """Train stage `at` for 24 steps, from a checkpoint after 11 of them when `interrupt`."""
    base = base_of()
    attachment = tuner.attach(base, names(base), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        for stage in tuner.stages[:at]:
            run_stage(attachment, stage, loss, 24)
            attachment = attachment.advance()
        stage = tuner.stages[at]
        optimiser = optimiser_of(stage, attachment)
        for step in range(24):
            if interrupt and step == 11:
                saved = {k: v.clone() for k, v in attachment.tensors().items()}
                attachment = tuner.attach(base_of(), names(base), seed=0)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # stepping over a stage warns of nothing
                    for _ in range(at):
                        attachment = attachment.advance()
                attachment.load_tensors(saved)
                if optimiser is not None:
                    state = optimiser.state_dict()
                    optimiser = optimiser_of(stage, attachment)
                    optimiser.load_state_dict(state)
            attachment.prepare(step / 24, seed=1000 + step)
            loss(attachment.module, step).backward()
            attachment.collect()
            if optimiser is not None:
                optimiser.step()
                optimiser.zero_grad()
        return {k: v.clone() for k, v in attachment.tensors().items()}


def test_a_foreign_checkpoint_is_an_error():
    base = base_of()
    small = RandomMask(share=0.05).attach(base, names(base), seed=0)
    large = RandomMask(share=0.1).attach(base, names(base), seed=0)
    with pytest.raises(TrainingError, match=r"'values' is .* in the checkpoint, here"):
        small.load_tensors(large.tensors())
    with pytest.raises(TrainingError, match="other tuner state"):
        small.load_tensors(Full().attach(base, names(base), seed=0).tensors())


@pytest.mark.parametrize("groups", [None, "tensor", "neuron"])
def test_density_follows_its_path(groups):
    base = base_of()
    tuner = DiffPruning(share=0.02, groups=groups)
    attachment = tuner.attach(base, names(base), seed=0)
    optimiser = adam(tuner.stages[0], attachment)
    seen = []
    for step in range(100):
        attachment.prepare(step / 100, seed=step)
        loss(attachment.module, step).backward()
        report = attachment.report()
        seen.append(report["density"] * report["touched"])
        attachment.collect()
        optimiser.step()
        optimiser.zero_grad()
    hold, arrive = tuner.hold, tuner.arrive
    touched = report["touched"]
    for step in range(10, 100):
        done = min(1.0, max(0.0, (step / 100 - hold) / (arrive - hold)))
        path = (2 * 0.02 / touched) ** done * touched
        assert seen[step] == pytest.approx(path, rel=0.1)


def test_expected_density_is_the_density_of_large_samples():
    torch.manual_seed(0)
    base = plain_base(nn.Linear(300, 400))
    tuner = DiffPruning(share=0.01)
    attachment = tuner.attach(base, names(base), seed=0)
    state = attachment.tensors()
    with torch.no_grad():
        state["values"].normal_()
        state["gates"].normal_(5, 2)
        state["group_gates"].fill_(9.0)
    for progress, wanted in ((0.65, None), (0.95, 0.02)):
        attachment.prepare(progress, seed=1)
        expected = attachment.report()["density"]
        drawn = []
        for seed in range(5):
            attachment.prepare(progress, seed=seed)
            weight = attachment.module.weight - base.model.weight
            if bool(weight.any()):
                drawn.append((weight != 0).double().mean().item())
        group_on = torch.sigmoid(state["group_gates"][0].double() - state["shift"]).item()
        assert sum(drawn) / len(drawn) * group_on == pytest.approx(expected, rel=0.1)
        if wanted is not None:
            assert expected == pytest.approx(wanted, rel=0.05)


def test_untouched_embedding_rows_are_never_kept():
    base = base_of()
    for name in ("magnitude", "gradient", "tensor", "flat"):
        updates = trained(SPARSE[name], base).extract()
        if "embedding.weight" in updates:
            assert int(updates["embedding.weight"].sparse.positions.max()) < 20 * WIDTH
    attachment = SPARSE["tensor"].attach(base, names(base), seed=0)
    run_stage(attachment, SPARSE["tensor"].stages[0], loss, 30)
    d = sum(p.numel() for p in base.model.parameters())
    assert attachment.report()["touched"] == pytest.approx(1 - 30 * WIDTH / d)


def test_gates_only_for_chosen_tensors():
    base = base_of()
    tuner = DiffPruning(share=0.05, gates=("layers.*",), gates_lr=0.2)
    attachment = trained(tuner, base)
    updates = attachment.extract()
    assert all(name.startswith("layers.") for name in updates)
    d = sum(p.numel() for p in base.model.parameters())
    assert sum(u.sparse.positions.numel() for u in updates.values()) == d // 20
    with pytest.raises(UnknownNameError, match=r"layer.*did you mean|known"):
        DiffPruning(gates=("layerz.*",)).attach(base, names(base), seed=0)
    with pytest.raises(ConfigError, match="match none of the targets"):
        DiffPruning(share=0.5, gates=("layers.*",)).attach(base, ["out.weight"], seed=0)


def test_all_values_may_be_kept():
    base = base_of()
    for tuner in (RandomMask(share=1.0), DiffPruning(share=1.0), Magnitude(share=1.0)):
        attachment = trained(tuner, base, steps=20)
        updates = attachment.extract()
        assert sum(u.sparse.positions.numel() for u in updates.values()) == sum(
            p.numel() for p in base.model.parameters()
        )


@pytest.mark.parametrize("start", ["gated", "dense", "zero"])
def test_where_the_fixed_mask_starts(start):
    base = base_of()
    gates = {"groups": None, "draw": "deterministic", "gate_init": 0.4}
    tuner = DiffPruning(share=0.1, start=start, density="penalty", lambda_l0=1e-9, **gates)
    attachment = tuner.attach(base, names(base), seed=0)
    with torch.no_grad():
        attachment.tensors()["values"].normal_(generator=torch.Generator().manual_seed(0))
    values = attachment.tensors()["values"].clone()
    with attachment.settled() as module:
        gated = torch.cat(
            [
                (p - q).view(-1)
                for p, q in zip(module.parameters(), base.model.parameters(), strict=True)
            ]
        ).detach()
    assert 0 < (gated / values).abs().max() < 1
    fixed = attachment.advance().tensors()
    expected = {"gated": gated, "dense": values, "zero": torch.zeros_like(values)}[start]
    torch.testing.assert_close(fixed["values"], expected[fixed["positions"]], rtol=1e-4, atol=1e-6)


def test_a_gate_stage_that_was_too_short_says_so():
    base = base_of()
    tuner = DiffPruning(share=0.02, density="penalty", lambda_l0=1e-9)
    attachment = tuner.attach(base, names(base), seed=0)
    run_stage(attachment, tuner.stages[0], loss, 10)
    with pytest.warns(TuningWarning, match="more than 5 times the .* to keep.*raise lambda_l0"):
        attachment.advance()
    tuner = DiffPruning(share=0.02)
    attachment = tuner.attach(base, names(base), seed=0)
    for step in range(10):  # the user forgot to let progress run
        attachment.prepare(0.0, seed=step)
        loss(attachment.module, step).backward()
        attachment.collect()
        with torch.no_grad():
            attachment.tensors()["values"].normal_()
    with torch.no_grad():
        attachment._settings.steering._path = type(attachment._settings.steering._path)(
            0.0, 1.0, 1.0
        )
    with pytest.warns(TuningWarning, match="run the stage to its end"):
        attachment.advance()


def test_gates_that_shut_too_far_say_so():
    base = base_of()
    tuner = DiffPruning(share=0.5, density="penalty", lambda_l0=10.0, gates_lr=0.5)
    attachment = tuner.attach(base, names(base), seed=0)
    run_stage(attachment, tuner.stages[0], loss, 160)
    with pytest.warns(TuningWarning, match="fewer than the .* to keep"):
        following = attachment.advance()
    d = sum(p.numel() for p in base.model.parameters())
    assert following.tensors()["positions"].numel() == d // 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DiffPruning(share=0.0), r"share: .* in \(0, 1\], not 0.0"),
        (lambda: DiffPruning(hold=0.9, arrive=0.4), "0 <= hold < arrive <= 1"),
        (lambda: DiffPruning(density="penalty"), "needs lambda_l0 above 0"),
        (lambda: DiffPruning(lambda_l0=1e-4), "no effect"),
        (lambda: DiffPruning(gates=()), "at least one pattern"),
        (lambda: DiffPruning(overshoot=0.5), "overshoot: at least 1"),
        (lambda: DiffPruning(low=0.5), "low < 0"),
        (lambda: DiffPruning(gates_share=1.0), r"gates_share: a part in \(0, 1\)"),
        (lambda: Full(values_lr=-1.0), "values_lr: a learning rate above 0, not -1.0"),
        (lambda: RandomMask(values_lr=float("nan")), "values_lr"),
        (lambda: FisherMask(batch_size=0), "batch_size: at least 1"),
        (lambda: GradientMask(warmup=1.0), r"warmup: a part in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_errors(make, said):
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        make()


@pytest.mark.usefixtures("untyped")
def test_misspelt_choices_are_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'tensor'"):
        DiffPruning(groups="tensors")
    with pytest.raises(UnknownNameError, match="did you mean 'dense'"):
        DiffPruning(start="dence")


def test_attach_errors_name_the_culprit():
    base = base_of()
    with pytest.raises(ConfigError, match="keeps 0 values; raise it"):
        RandomMask(share=1e-9).attach(base, names(base), seed=0)
    with pytest.raises(ConfigError, match="no targets"):
        Full().attach(base, [], seed=0)
    with pytest.raises(UnknownNameError, match=r"did you mean 'out.weight'"):
        Full().attach(base, ["out.weigth"], seed=0)
    integers = nn.Module()
    integers.q = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"target 'q' is torch.int8"):
        Full().attach(plain_base(integers), ["q"], seed=0)
    with pytest.raises(UnsupportedError, match="meta device"):
        Full().attach(plain_base(nn.Linear(2, 2, device="meta")), ["weight"], seed=0)


@pytest.mark.parametrize("name", ["random", "tensor", "gradient"])
def test_a_loss_that_does_not_reach_the_targets_is_an_error(name):
    base = base_of()
    attachment = SPARSE[name].attach(base, names(base), seed=0)
    attachment.prepare(0.0, seed=0)
    with pytest.raises(TrainingError, match=r"none of the .* tuned parameters received a gradient"):
        attachment.collect()


@pytest.mark.parametrize("tuner", [Full(values_lr=3e-3), *SPARSE.values()], ids=str)
def test_gradients_accumulate(tuner):
    base = base_of(torch.float64)
    grads = []
    for halves in (False, True):
        attachment = tuner.attach(base, names(base), seed=0)
        if attachment.groups() == ():
            pytest.skip("scores are not linear in the gradient")
        with torch.no_grad():
            for parameter in attachment:
                parameter.add_(0.01)
        attachment.prepare(0.1, seed=0)
        words, labels = batch(0)
        parts = [slice(0, 8), slice(8, 16)] if halves else [slice(0, 16)]
        for part in parts:
            value = F.cross_entropy(attachment.module(words[part]), labels[part])
            (value / len(parts)).backward()
        attachment.collect()
        grads.append(torch.cat([p.grad.reshape(-1) for p in attachment]))
        assert all(p.grad is None for p in attachment.module.parameters()) or isinstance(
            tuner, Full | Magnitude
        )
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


def fused_base():
    """A parameter that holds three stored tensors, two of them contiguous, one transposed."""
    torch.manual_seed(0)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused = nn.Parameter(torch.randn(3, 6, 6) / 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i in range(3):
                x = x + torch.tanh(x @ self.fused[i])
            return x

    pieces = [
        Piece("a.weight", "fused", (6, 6), (6, 1), 0, whole=False),
        Piece("b.weight", "fused", (6, 6), (6, 1), 36, whole=False),
        Piece("c.weight", "fused", (6, 6), (1, 6), 72, whole=False),
    ]
    return plain_base(Fused(), NameMap({piece.name: piece for piece in pieces}))


FUSED = [Full(values_lr=1e-2), *SPARSE.values()]


@pytest.mark.parametrize("tuner", FUSED, ids=str)
@pytest.mark.parametrize("targets", [["a.weight", "c.weight"], ["b.weight"]])
def test_pieces_of_fused_parameters(tuner, targets):
    base = fused_base()
    before = bits(base.model)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    y = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        attachment = tuner.attach(base, targets, seed=0)
        attachment = train(tuner, attachment, lambda m, s: (m(x) - y).square().mean(), 60)
    updates = attachment.extract("float32")
    assert updates
    assert set(updates) <= set(targets)
    with torch.no_grad(), attachment.settled() as module:
        settled = module(x)
        viewed = view(base, as_delta(base, updates))(x)
        torch.testing.assert_close(viewed, settled, rtol=1e-5, atol=1e-6)
        assert (settled - base.model(x)).abs().max() > 1e-3
    assert bits(base.model) == before


@pytest.mark.parametrize("tuner", [Full(values_lr=1e-3), *SPARSE.values()], ids=str)
def test_half_precision_bases_learn_in_float32(tuner):
    base = base_of(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        attachment = trained(tuner, base, steps=40)
    updates = attachment.extract("float32")
    assert {p.dtype for p in attachment} == {torch.float32}
    words, _ = batch(500)
    with torch.no_grad(), attachment.settled() as module:
        assert torch.equal(view(base, as_delta(base, updates))(words), module(words))


def test_double_precision_bases_learn_in_float64():
    base = base_of(torch.float64)
    attachment = trained(RandomMask(share=0.1), base, steps=20)
    assert {p.dtype for p in attachment} == {torch.float64}
    (update,) = [u for n, u in attachment.extract("float64").items() if n == "embedding.weight"]
    assert values_of(update.sparse.values).dtype == torch.float64


def test_head_and_last_layer():
    base = base_of()
    frozen = Head().attach(base, [], seed=0)
    assert frozen.extract() == {}
    assert list(frozen) == []
    head = nn.Linear(CLASSES, CLASSES)
    optimiser = adam(Head(head_lr=0.1).stages[0], frozen, head.parameters())
    adapted = nn.Sequential(frozen.module, head)
    before = sum(loss(adapted, step).item() for step in range(60))
    for step in range(60):
        frozen.prepare(step / 60, seed=step)
        loss(adapted, step).backward()
        frozen.collect()
        optimiser.step()
        optimiser.zero_grad()
    assert sum(loss(adapted, step).item() for step in range(60)) < before
    with pytest.raises(ConfigError, match="pass its parameters as head="):
        adam(Head().stages[0], frozen)
    last = trained(LastLayer(), base, steps=5)
    assert set(last.extract()) == {"layers.1.weight", "layers.1.bias"}
    plain = plain_base(nn.Sequential())
    plain.model.add_module("first", nn.Linear(2, 2))
    plain.model.add_module("second", nn.Linear(2, 2))
    named = plain_base(plain.model, identity_names(plain.model))
    attachment = LastLayer().attach(named, names(named), seed=0)
    assert set(attachment.tensors()) == {"second.weight", "second.bias"}


def test_stages_walks_and_shares_sum_to_one():
    base = base_of()
    for tuner in (Full(), Head(), LastLayer(), *SPARSE.values()):
        assert sum(stage.share for stage in tuner.stages) == pytest.approx(1.0)
        walked = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TuningWarning)
            for stage, attachment in stages(tuner, base, names(base), seed=0):
                walked.append(stage.name)
                assert {group.role for group in attachment.groups()} <= set(stage.learning_rates)
        assert walked == [stage.name for stage in tuner.stages]
