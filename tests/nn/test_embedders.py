"""Input embedders against convolutions, loops over columns, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graftwork._errors import ConfigError, InputError
from graftwork.nn import Codes, Columns, OutputNorm, Patches, patch_of


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("patch", "sizes"), [([4], (12,)), ([2, 3], (6, 9))])
def test_patches_are_a_convolution_whose_stride_is_its_kernel(patch: list, sizes: tuple) -> None:
    port = Patches(3, patch, 5)
    nn.init.normal_(port.projection.bias)
    x = torch.randn(2, 3, *sizes)
    kind = nn.Conv1d if len(patch) == 1 else nn.Conv2d
    convolution = kind(3, 5, tuple(patch), tuple(patch))
    convolution.weight.data = port.projection.weight.data.view(5, 3, *patch)
    convolution.bias.data = port.projection.bias.data
    wanted = nn.functional.layer_norm(convolution(x).flatten(2).transpose(1, 2), (5,))
    torch.testing.assert_close(port(x), wanted)


def test_patches_start_like_the_paper() -> None:
    port = Patches(3, [4, 4], 32)
    bound = math.sqrt(2) * math.sqrt(6 / (3 * 16 + 32 * 16))
    weight = port.projection.weight
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert weight.abs().max() <= bound
    assert not port.projection.bias.any()
    # of one value LayerNorm would leave the sign
    single = Patches(1, [1], 8)(torch.tensor([[1.0, 2.0]]))[0]
    assert not torch.allclose(single[0], single[1], atol=1e-2)


def test_one_channel_needs_no_axis() -> None:
    series, field = Patches(1, [2], 4), Patches(1, [2, 2], 4)
    x, y = torch.randn(3, 8), torch.randn(3, 4, 6)
    assert torch.equal(series(x), series(x[:, None]))
    assert torch.equal(field(y), field(y[:, None]))


@pytest.mark.parametrize("tokens", [None, 1, 2, 3])
def test_columns_against_a_loop(tokens: int | None) -> None:
    port = Columns([0, 3, 0, 2], 6, tokens)
    x = torch.tensor([[0.5, 2.0, -1.5, 1.0], [1.0, 0.0, 0.3, 0.0]])
    out = []
    for row in x:
        a, b, c, d = row.tolist()
        vectors = [
            a * port.weight[0] + port.bias[0],
            port.table[int(b)] + port.bias[1],
            c * port.weight[1] + port.bias[2],
            port.table[3 + int(d)] + port.bias[3],
        ]
        count = tokens or 4
        parts = [sum(v for i, v in enumerate(vectors) if i * count // 4 == t) for t in range(count)]
        out.append(nn.functional.layer_norm(torch.stack(parts), (6,)))
    torch.testing.assert_close(port(x), torch.stack(out))


def test_columns_keep_the_size_of_a_number() -> None:
    port = Columns([0], 16)
    one, two = port(torch.tensor([[1.0], [2.0]]))
    assert not torch.allclose(one, two, atol=1e-2)


def test_codes_add_up_neighbours_by_place() -> None:
    port = Codes(4, 6, patch=2)
    ids = torch.tensor([[3, 1, 0, 2]])
    wanted = torch.stack([port.table[3] + port.table[4 + 1], port.table[0] + port.table[4 + 2]])
    torch.testing.assert_close(port(ids)[0], nn.functional.layer_norm(wanted, (6,)))


def test_outputs_start_where_the_base_is() -> None:
    mean, deviation = torch.randn(8), torch.rand(8) + 0.5
    port = Patches(1, [4], 8)
    port.norm.match(mean, deviation)
    out = port(torch.randn(500, 40)).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), mean, atol=0.1, rtol=0.1)
    assert (out.std(0) / deviation).median().item() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_wider_type_is_kept(dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    assert Patches(1, [2], 4)(torch.ones(2, 8, dtype=dtype)).dtype == wide
    assert Columns([0, 2], 4)(torch.ones(2, 2, dtype=dtype)).dtype == wide
    assert Columns([2, 2], 4)(torch.ones(2, 2, dtype=torch.int64)).dtype == torch.float32
    assert OutputNorm(4)(torch.ones(2, 4, dtype=dtype)).dtype == wide


def test_patch_of_is_the_smallest_divisor() -> None:
    for length in range(1, 60):
        for positions in (1, 4, 16):
            fits = [k for k in range(1, length + 1) if length % k == 0 and length / k <= positions]
            assert patch_of(length, positions) == fits[0]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"\(2, 3, 9\) do not part into patches of \[4\]"):
        Patches(3, [4], 5)(torch.zeros(2, 3, 9))
    with pytest.raises(InputError, match="over 3 channel"):
        Patches(3, [4], 5)(torch.zeros(2, 2, 8))
    with pytest.raises(InputError, match="not 2 columns"):
        Columns([0, 0], 4)(torch.zeros(2, 3))
    with pytest.raises(InputError, match="column 1 has a code outside 0 to 2"):
        Columns([0, 3], 4)(torch.tensor([[0.0, 3.0]]))
    with pytest.raises(InputError, match="outside 0 to 3"):
        Codes(4, 4)(torch.tensor([[4]]))
    with pytest.raises(InputError, match="pieces of 2"):
        Codes(4, 4, patch=2)(torch.zeros(1, 3, dtype=torch.int64))
    for make in (
        lambda: Patches(1, [], 4),
        lambda: Patches(0, [2], 4),
        lambda: Columns([], 4),
        lambda: Columns([0], 4, tokens=2),
        lambda: Codes(0, 4),
        lambda: patch_of(0, 4),
    ):
        with pytest.raises(ConfigError):
            make()
