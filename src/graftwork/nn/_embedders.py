"""Input embedders: foreign data of any modality to positions of a base's embedding width.

Shape legend: B rows, C channels, L positions of the data, H and W height and width of a field,
F columns, S positions that the base sees, D its embedding width.

Each is a map of pieces of the data to vectors, then a LayerNorm (Shen et al., 2023, section 3.1,
where it is a convolution whose stride is its kernel). Their positions come from the base: BERT-like
bases add their own position vectors, and their own LayerNorm, to what they get as inputs_embeds.
The authors' embedder brings a copy of the base's positions instead and skips the base's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork._errors import ConfigError, InputError
from graftwork.nn._linear import PromotingLinear

GAIN = math.sqrt(2.0)
"""Gain of the Xavier initialisation, as in the authors' program."""


class OutputNorm(nn.LayerNorm):
    """LayerNorm that computes in the wider of its own and its input's type.

    Args:
        width: the base's embedding width.

    Example:
        >>> norm = OutputNorm(2)
        >>> norm.match(torch.tensor([5.0, 5.0]), torch.tensor([1.0, 1.0]))
        >>> norm(torch.tensor([[0.0, 2.0]])).round().tolist()
        [[4.0, 6.0]]
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., width)` to `(..., width)`."""
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(input.to(dtype), self.normalized_shape, weight, bias, self.eps)

    def match(self, mean: Tensor, deviation: Tensor) -> None:
        """Start with this mean and deviation of each entry: those of the base's own embeddings.

        Args:
            mean: `(width,)`.
            deviation: `(width,)`, not negative.
        """
        with torch.no_grad():
            self.weight.copy_(deviation)
            self.bias.copy_(mean)


class Patches(nn.Module):
    """Cut a series or a field into patches, each one position: linear map, then LayerNorm.

    Args:
        channels: C.
        patch: values of a patch along each axis: `[k]` for series, `[h, w]` for fields.
        width: the base's embedding width.

    Raises:
        ConfigError: a size is not positive, or `patch` has not 1 or 2 axes.

    Example:
        >>> Patches(2, [4], 8)(torch.zeros(3, 2, 16)).shape  # a series with 2 channels
        torch.Size([3, 4, 8])
        >>> Patches(1, [2, 2], 8)(torch.zeros(3, 8, 8)).shape  # one channel needs no axis
        torch.Size([3, 16, 8])
    """

    def __init__(self, channels: int, patch: Sequence[int], width: int) -> None:
        super().__init__()
        if len(patch) not in (1, 2) or min(channels, width, *patch) < 1:
            raise ConfigError(
                "patches need channels >= 1, width >= 1 and a patch of 1 or 2 positive sizes, not "
                f"{channels}, {width} and {list(patch)}"
            )
        self.channels, self.patch = channels, tuple(patch)
        values = channels * math.prod(patch)
        self.projection = PromotingLinear(values, width)
        self.norm = OutputNorm(width)
        nn.init.xavier_uniform_(self.projection.weight.view(width, channels, *patch), GAIN)
        if values == 1:
            # LayerNorm of x * w alone would keep nothing of x but its sign.
            nn.init.uniform_(self.projection.bias, -1.0, 1.0)
        else:
            nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, L)` or `(B, C, H, W)` to `(B, S, width)`, patches in reading order."""
        axes = len(self.patch)
        if self.channels == 1 and x.dim() == axes + 1:
            x = x[:, None]
        sizes = x.shape[2:]
        fits = x.dim() == axes + 2 and x.shape[1] == self.channels
        if not fits or any(size % step for size, step in zip(sizes, self.patch, strict=True)):
            raise InputError(
                f"data of shape {tuple(x.shape)} do not part into patches of {list(self.patch)} "
                f"over {self.channels} channel(s); pad or resize them"
            )
        for axis, step in enumerate(self.patch):
            x = x.unfold(2 + axis, step, step)
        # (B, C, *counts, *patch) -> (B, *counts, C, *patch)
        x = x.movedim(1, 1 + axes).flatten(1 + axes).flatten(1, axes)
        out: Tensor = self.norm(self.projection(x))
        return out


def patch_of(length: int, positions: int) -> int:
    """Return the smallest divisor k of `length` with `length / k <= positions`.

    The rule of Shen et al. (2023, appendix): at most `positions` patches that fit exactly.

    Example:
        >>> patch_of(64, 16), patch_of(30, 4), patch_of(13, 4)
        (4, 10, 13)
    """
    if min(length, positions) < 1:
        raise ConfigError(f"length and positions must be 1 or more, not {length} and {positions}")
    return next(k for k in range(1, length + 1) if length % k == 0 and length // k <= positions)


class Columns(nn.Module):
    """Embed the columns of a table, numbers and categories, then LayerNorm.

    A number x in column f is the vector `x * w_f + b_f`, a category with code c the vector
    `t_f[c] + b_f`; neighbouring columns are added up to `tokens` positions. Of numbers only, that
    is a linear map of patches, as Shen et al. (2023) treat a table as a series; categories and
    widths that do not divide are ours. So are biases that do not start at 0: LayerNorm of
    `x * w_f` alone would keep nothing of x but its sign.

    Args:
        categories: for each column 0 for a number, or how many codes 0, 1, ... it has.
        width: the base's embedding width.
        tokens: positions; None for one a column.

    Raises:
        ConfigError: no column, a negative count, or more tokens than columns.

    Example:
        >>> rows = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.3, 0.0]])  # two numbers and a code
        >>> Columns([0, 0, 3], 8)(rows).shape, Columns([0, 0, 3], 8, tokens=2)(rows).shape
        (torch.Size([2, 3, 8]), torch.Size([2, 2, 8]))
    """

    def __init__(self, categories: Sequence[int], width: int, tokens: int | None = None) -> None:
        super().__init__()
        count = len(categories)
        tokens = count if tokens is None else tokens
        if not count or min(categories) < 0 or width < 1 or not 1 <= tokens <= count:
            raise ConfigError(
                f"columns need a count of codes (0: a number) each, width >= 1 and 1 to {count} "
                f"tokens, not {list(categories)}, {width} and {tokens}"
            )
        self.categories, self.tokens = tuple(categories), tokens
        numbers = sum(codes == 0 for codes in categories)
        self.weight = nn.Parameter(torch.empty(numbers, width))
        self.table = nn.Parameter(torch.empty(sum(categories), width))
        self.bias = nn.Parameter(torch.empty(count, width))
        self.norm = OutputNorm(width)
        bound = GAIN * math.sqrt(6.0 / (math.ceil(count / tokens) + width))
        for values in (self.weight, self.table, self.bias):
            nn.init.uniform_(values, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, F)` numbers and codes to `(B, tokens, width)`.

        Raises:
            InputError: another number of columns, or a code out of range; names the column.
        """
        if x.dim() != 2 or x.shape[1] != len(self.categories):
            raise InputError(
                f"the table has rows of shape {tuple(x.shape[1:])}, not {len(self.categories)} "
                "columns"
            )
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        if not dtype.is_floating_point:
            dtype = self.weight.dtype
        numbers = [i for i, codes in enumerate(self.categories) if codes == 0]
        named = [i for i, codes in enumerate(self.categories) if codes]
        parts = self.bias.to(dtype).expand(len(x), -1, -1)
        if numbers:
            scaled = x[:, numbers, None].to(dtype) * self.weight.to(dtype)
            parts = parts.index_add(1, self._index(numbers, x), scaled)
        if named:
            rows = F.embedding(self._codes(x, named), self.table.to(dtype))
            parts = parts.index_add(1, self._index(named, x), rows)
        count = len(self.categories)
        place = self._index([i * self.tokens // count for i in range(count)], x)
        summed = parts.new_zeros(len(x), self.tokens, parts.shape[2]).index_add(1, place, parts)
        out: Tensor = self.norm(summed)
        return out

    def _codes(self, x: Tensor, named: list[int]) -> Tensor:
        """Return rows of the table for each category, `(B, categories)`."""
        codes, counts = x[:, named].long(), [self.categories[i] for i in named]
        wrong = ((codes < 0) | (codes >= self._index(counts, x))).any(0)
        if bool(wrong.any()):
            column = named[int(wrong.int().argmax())]
            raise InputError(
                f"column {column} has a code outside 0 to {self.categories[column] - 1}"
            )
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return codes + self._index(starts, x)

    def _index(self, values: list[int], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=like.device)


class Codes(nn.Module):
    """Embed a sequence of ids of another vocabulary (DNA, notes, events), then LayerNorm.

    Args:
        count: ids 0 to count - 1.
        width: the base's embedding width.
        patch: neighbouring ids whose vectors one position adds up, each place with its own vectors.

    Raises:
        ConfigError: a size is not positive.

    Example:
        >>> Codes(4, 8, patch=3)(torch.zeros(2, 12, dtype=torch.int64)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, count: int, width: int, patch: int = 1) -> None:
        super().__init__()
        if min(count, width, patch) < 1:
            raise ConfigError(
                f"codes need count, width and patch >= 1, not {count}, {width} and {patch}"
            )
        self.count, self.patch = count, patch
        self.table = nn.Parameter(torch.empty(patch * count, width))
        self.norm = OutputNorm(width)
        bound = GAIN * math.sqrt(6.0 / (patch * count + width))
        nn.init.uniform_(self.table, -bound, bound)

    def forward(self, ids: Tensor) -> Tensor:
        """Map `(B, L)` ids to `(B, L / patch, width)`.

        Raises:
            InputError: L is no multiple of `patch`, or an id is out of range.
        """
        if ids.dim() != 2 or ids.shape[1] % self.patch:
            raise InputError(
                f"ids of shape {tuple(ids.shape)} do not part into pieces of {self.patch}"
            )
        ids = ids.long()
        if bool(((ids < 0) | (ids >= self.count)).any()):
            raise InputError(f"an id is outside 0 to {self.count - 1}")
        places = torch.arange(self.patch, device=ids.device) * self.count
        vectors = F.embedding(ids.unflatten(1, (-1, self.patch)) + places, self.table)
        out: Tensor = self.norm(vectors.sum(2))
        return out
