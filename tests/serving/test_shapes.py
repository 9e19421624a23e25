"""Where rows stand is found by trying: models of every order of dimensions, and none is assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork._batch import Batch
from graftwork._errors import UnusedTensorError
from tests.serving.support import Held, deltas_of, in_turn, plain_call, rows_of

WIDTH = 4


class Made(nn.Module):
    """Two layers and a forward that a test gives."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def flat(module: Any, x: Tensor) -> Tensor:
    return module.a(x.flatten(0, 1)).view_as(x).tanh()


def flat_time(module: Any, x: Tensor) -> Tensor:
    turned = x.transpose(0, 1)
    return module.a(turned.flatten(0, 1)).view_as(turned).transpose(0, 1).tanh()


def time_lstm(module: Any, x: Tensor) -> Tensor:
    out, (h, _) = module.a(x.transpose(0, 1))
    return out.transpose(0, 1) + h[0].unsqueeze(1)


def time_attention(module: Any, x: Tensor) -> Tensor:
    turned = x.transpose(0, 1)
    out, weights = module.a(turned, turned, turned)
    return out.transpose(0, 1) + weights.mean() * 0


def channels(module: Any, x: Tensor) -> Tensor:
    return module.a(x.transpose(1, 2)).transpose(1, 2)


def twice(module: Any, x: Tensor) -> Tensor:
    return module.a(x) + module.a(module.a(x).tanh())


def both_orders(module: Any, x: Tensor) -> Tensor:
    return module.a(x) + module.a(x.transpose(0, 1)).transpose(0, 1) ** 2


def routed(module: Any, x: Tensor) -> Tensor:
    """Each token goes to the expert that its largest of two entries says."""
    tokens = x.flatten(0, 1)
    chosen = tokens[:, :2].argmax(1)
    out = torch.zeros_like(tokens)
    for index, expert in enumerate((module.a, module.b)):
        mine = (chosen == index).nonzero()[:, 0]
        if len(mine):
            out[mine] = expert(tokens[mine])
    return out.view_as(x)


def masked(module: Any, x: Tensor) -> Tensor:
    """The same by a mask of booleans."""
    tokens = x.flatten(0, 1)
    first = tokens[:, 0] > tokens[:, 1]
    out = torch.zeros_like(tokens)
    if first.any():
        out[first] = module.a(tokens[first])
    if not first.all():
        out[~first] = module.b(tokens[~first])
    return out.view_as(x)


def functional(module: Any, x: Tensor) -> Tensor:
    """The first layer's weight is read again by a module that does not hold it."""
    return F.linear(module.a(x).tanh(), module.a.weight)


def heads(module: Any, x: Tensor) -> Tensor:
    """Rows times heads in the first dimension, as some attention layers have it."""
    rows, length, _ = x.shape
    split = x.view(rows, length, 2, 2).transpose(1, 2).reshape(rows * 2, length, 2)
    return module.a(split).view(rows, 2, length, 2).transpose(1, 2).reshape(x.shape)


MODELS = {
    "flat": (flat, lambda: {"a": linear()}, {"linear": 1}, ()),
    "flat, time first": (flat_time, lambda: {"a": linear()}, {"linear": 1}, ()),
    "rows times heads": (heads, lambda: {"a": nn.Linear(2, 2)}, {"linear": 1}, ()),
    "lstm, time first": (time_lstm, lambda: {"a": nn.LSTM(WIDTH, WIDTH)}, {}, ("a",)),
    "gru": (
        lambda m, x: m.a(x)[0],
        lambda: {"a": nn.GRU(WIDTH, WIDTH, batch_first=True)},
        {},
        ("a",),
    ),
    "attention, time first": (
        time_attention,
        lambda: {"a": nn.MultiheadAttention(WIDTH, 2)},
        {},
        ("a",),
    ),
    "convolution": (channels, lambda: {"a": nn.Conv1d(WIDTH, WIDTH, 3, padding=1)}, {}, ("a",)),
    "called three times": (twice, lambda: {"a": linear()}, {"linear": 1}, ()),
    "called in both orders": (both_orders, lambda: {"a": linear()}, {}, ("",)),
    "routed": (routed, lambda: {"a": linear(), "b": linear()}, {}, ("",)),
    "masked": (masked, lambda: {"a": linear(), "b": linear()}, {}, ("",)),
    "functional": (functional, lambda: {"a": linear(), "b": linear()}, None, None),
}


def held_of(name: str) -> Held:
    forward, layers, _, _ = MODELS[name]
    torch.manual_seed(0)
    # "b" of the functional one is idle
    touches = (lambda name: name == "a.weight") if name == "functional" else (lambda _: True)
    return deltas_of(Made(forward, **layers()), touches=touches)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("name", MODELS)
def test_law12_every_order_of_dimensions(name: str, rows: int) -> None:
    held = held_of(name)
    generator = torch.Generator().manual_seed(rows)
    # as many positions as rows at four: no size may be taken for another
    x = torch.randn(rows, 4, WIDTH, generator=generator)
    report = held.check(in_turn(rows, 3), rows_of(x), plain_call)
    _, _, together, apart = MODELS[name]
    if together is None:
        assert "'a.weight' is read by a module that does not hold it" in report.whole
    else:
        assert report.together == together
        assert tuple(report.apart) == apart


@pytest.mark.parametrize("name", ["routed", "masked"])
def test_tokens_that_are_routed_are_no_rows_whatever_the_first_batch_shows(name: str) -> None:
    held = held_of(name)
    even = torch.tensor([[1.0, 0, 2, 0], [0.0, 1, 0, 2], [1.0, 0, 0, 1], [0.0, 1, 3, 0]])
    first = torch.stack([even, even.flip(1) + 0.5])
    held.check(in_turn(2, 3), rows_of(first), plain_call)
    # eight of sixteen tokens again, but another number of each row
    one, two = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 1, 0, 0])
    uneven = torch.stack(
        [torch.stack(tokens) for tokens in ([one, one, one, two], [one, two, two, two])] * 2
    )
    held.check(in_turn(4, 3), rows_of(uneven), plain_call)


def test_the_same_code_with_another_flag_is_another_call() -> None:
    def model(module: Any, x: Tensor) -> Tensor:
        return module.a(x)

    held = deltas_of(Made(model, a=linear()))

    def ordered(time_first: bool) -> Any:
        def run(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
            x = inputs["x"]
            return module(x.transpose(0, 1)).transpose(0, 1) if time_first else module(x)

        return run

    x = torch.randn(4, 4, WIDTH)
    for flag in (False, True, False):
        held.check(in_turn(4, 3), rows_of(x), ordered(flag))


def test_a_mask_that_comes_only_where_rows_are_padded() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x @ self.weight + mask.unsqueeze(-1)

    def masked(module: Any, x: Tensor) -> Tensor:
        padded = x[..., 0] < -9
        mask = -3.0 * padded if padded.any() else torch.zeros(1, x.shape[1])
        return module.a(x, mask)

    held = deltas_of(Made(masked, a=Bias()))
    whole = torch.randn(5, 3, WIDTH).clamp(-5, 5)
    padded = whole.clone()
    padded[:, 2, 0] = -10.0
    for x in (whole, padded, whole, padded[:1], whole[:1]):
        held.check(in_turn(len(x), 3), rows_of(x), plain_call)


def test_packed_rows_of_uneven_sizes() -> None:
    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor, row_of: Tensor, rows: int) -> Tensor:
            points = self.each(x).tanh()
            return self.out(points.new_zeros(rows, WIDTH).index_add_(0, row_of, points))

    held = deltas_of(Points())

    def call(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        return module(inputs["x"], inputs["row_of"], int(inputs["row_of"].max()) + 1)

    for sizes in ([2, 2, 2], [1, 1, 1, 1], [3, 1, 2, 5, 1], [4], [1, 3]):
        row_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        points = torch.randn(sum(sizes), 3)
        batch = Batch({"x": points}, None, torch.arange(len(sizes)), row_of)
        report = held.check(in_turn(len(sizes), 3), batch, call)
        assert report.together == {"linear": 2}
        assert not report.whole


@pytest.mark.parametrize("rows", [in_turn(3, 3), [((0, 1.0),)] * 3])
def test_law07_what_the_forward_does_not_consume_is_an_error(rows: Any) -> None:
    held = deltas_of(Made(lambda m, x: m.a(x), a=linear(), b=linear()))
    with pytest.raises(
        UnusedTensorError, match=r"not consumed by the forward: 'b\.bias', 'b\.weight'"
    ):
        held.run(rows, rows_of(torch.zeros(3, WIDTH)), plain_call)


def test_law07_a_weight_that_only_others_read_never_passes_for_every_rows() -> None:
    held = deltas_of(
        Made(lambda m, x: F.linear(x, m.a.weight), a=linear()), touches=lambda n: n == "a.weight"
    )
    x = torch.randn(4, WIDTH)
    report = held.check(in_turn(4, 3), rows_of(x), plain_call)
    assert report.apart or report.whole


def test_tied_weights_are_one_weight_in_every_module_that_holds_them() -> None:
    def tied(module: Any, x: Tensor) -> Tensor:
        return module.out(module.table(x.long()[..., 0] % 5).tanh())

    model = Made(tied, table=nn.Embedding(5, WIDTH), out=nn.Linear(WIDTH, 5, bias=False))
    model.out.weight = model.table.weight
    held = deltas_of(model)
    report = held.check(in_turn(4, 3), rows_of(torch.arange(48).view(4, 3, 4).float()), plain_call)
    assert report.together == {"embedding": 1, "linear": 1}


def test_padded_embeddings_and_norms_without_bias() -> None:
    def run(module: Any, x: Tensor) -> Tensor:
        return module.norm(module.table(x.long()[..., 0] % 5))

    model = Made(
        run,
        table=nn.Embedding(5, WIDTH, padding_idx=0),
        norm=nn.LayerNorm(WIDTH, bias=False),
    )
    held = deltas_of(model)
    report = held.check(in_turn(4, 3), rows_of(torch.arange(48).view(4, 3, 4).float()), plain_call)
    assert report.together == {"embedding": 1, "layer_norm": 1}


def test_tables_with_more_than_a_look_up_run_once_a_group() -> None:
    held = deltas_of(
        Made(lambda m, x: m.a(x.long()[..., 0] % 5), a=nn.EmbeddingBag(5, WIDTH, mode="sum"))
    )
    x = torch.arange(48).view(4, 3, 4).float()
    report = held.check(in_turn(4, 3), rows_of(x), plain_call)
    assert tuple(report.apart) == ("a",)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_inside_an_encoder_with_padding() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    held = deltas_of(nn.TransformerEncoder(layer, 2), size=0.1)
    padding = torch.zeros(5, 4, dtype=torch.bool)
    padding[1, 3], padding[2, 2:] = True, True
    batch = rows_of({"x": torch.randn(5, 4, 8), "padding": padding})

    def call(module: nn.Module, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
        out = module(inputs["x"], src_key_padding_mask=inputs["padding"])
        return out.masked_fill(inputs["padding"].unsqueeze(-1), 0.0)

    held.check(in_turn(5, 3), batch, call)


def test_rows_that_depend_on_each_other_run_by_themselves() -> None:
    def centred(module: Any, x: Tensor) -> Tensor:
        y = module.a(x)
        return module.b(y - y.mean(0))

    held = deltas_of(Made(centred, a=linear(), b=linear()))
    report = held.check(in_turn(5, 3), rows_of(torch.randn(5, WIDTH)), plain_call)
    assert "depend on the other rows" in report.whole


def test_sequences_that_are_packed_by_their_lengths() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            return self.out(self.lstm(packed)[1][0][-1])

    held = deltas_of(Packed())
    batch = rows_of({"x": torch.randn(5, 4, WIDTH), "n": torch.tensor([4, 2, 3, 1, 4])})
    held.check(in_turn(5, 3), batch, lambda m, _p, i: m(i["x"], i["n"]))
