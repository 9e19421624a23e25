"""Modules whose groups run together: linear layers, embeddings and layer norms.

`terms` states once what the groups of a batch do at a site, `run` uses it in each forward.

Shape legend: B rows, n positions (B times those of a row), G groups, weight (out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.deltas import NameMap, Part, adapted_parameter, float_of
from graftwork.serving._groups import Group, Span
from graftwork.serving._layout import Rows
from graftwork.serving._products import add_low_rank, add_sparse, choose, scratch_product
from graftwork.serving._sites import Kind, Site
from graftwork.serving._state import Run, grouped
from graftwork.serving._terms import Matrices, Matrix, Sparse, matrix_of, stack


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What the groups do to the parameters of one module.

    Attributes:
        matrices: to its weight, if that is a matrix and changes.
        whole: group -> its updates of the weight, where that must be written out.
        vectors: attribute -> `(G, size)`, adapted values of a one-dimensional parameter.
    """

    matrices: Matrices | None
    whole: Mapping[int, tuple[Part, ...]]
    vectors: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """What the tensors take."""
        own = 0 if self.matrices is None else self.matrices.bytes
        return own + sum(v.numel() * v.element_size() for v in self.vectors.values())


def terms_of(
    site: Site,
    module: nn.Module,
    names: NameMap,
    groups: Sequence[Group],
    single: Callable[[Group, str, Callable[[], Matrix]], Matrix],
) -> Terms:
    """Return what `groups` do at a site.

    Args:
        site: of a kind that runs together.
        module: the base's own.
        names: of the base.
        groups: in order.
        single: (group, parameter, make) -> what one group does to a matrix, kept or made.
    """
    matrices, whole = None, {}
    vectors = {}
    for leaf, parameter in site.owned.items():
        value = module._parameters[leaf]
        assert value is not None
        if value.dim() != 2:
            vectors[leaf] = _vectors(value, names, groups, parameter)
            continue
        transposed = site.kind == "conv1d"
        rows, cols = value.shape
        shape = (cols, rows) if transposed else (rows, cols)
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        make = partial(_matrix, names, parameter, shape, dtype, transposed)
        parts = [single(group, parameter, partial(make, group)) for group in groups]
        matrices = stack(parts, shape, torch.empty(0, dtype=dtype, device=value.device))
        whole = {g: groups[g].parts(names, parameter) for g in matrices.whole}
    return Terms(matrices, whole, vectors)


def _matrix(
    names: NameMap,
    parameter: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    transposed: bool,
    group: Group,
) -> Matrix:
    parts = group.parts(names, parameter)
    if not parts:
        return Matrix()
    if len(parts) > 1 or not parts[0].piece.whole:
        return Matrix(whole=True)
    return matrix_of(parts[0].terms, shape, dtype, transposed=transposed)


def _vectors(value: Tensor, names: NameMap, groups: Sequence[Group], parameter: str) -> Tensor:
    parts = [group.parts(names, parameter) for group in groups]
    return torch.stack(
        [adapted_parameter(value, part) if part else value.detach() for part in parts]
    )


def linear(site: Site, module: nn.Module, terms: Terms, run: Run, rows: Rows, x: Tensor) -> Tensor:
    """Return what a linear layer (or GPT-2's Conv1D) gives, each row by its own weights."""
    first, _, span = grouped(run, rows, x)
    flat = first.reshape(-1, first.shape[-1])
    weight = module._parameters["weight"]
    assert weight is not None
    y = _product(flat, weight, terms, run, span, transposed=site.kind == "conv1d")
    bias = terms.vectors.get("bias", module._parameters.get("bias"))
    if bias is not None:
        y = _by_row(y, span, bias, torch.add) if bias.dim() == 2 else y.add_(bias)
    y = y.to(x.dtype)
    return rows.back(y.view(*first.shape[:-1], y.shape[-1]), span.count)


def _product(
    x: Tensor,
    weight: Tensor,
    terms: Terms,
    run: Run,
    span: Span,
    *,
    transposed: bool,
) -> Tensor:
    """Return `(n, out)`: `x` times the weight of each position's group.

    Of 16-bit numbers it is float32, so that what is added to the base's product is rounded once.
    """
    found, bounds = terms.matrices, span.times(len(x) // max(span.count, 1))
    weight = float_of(weight)
    base = weight if transposed else weight.T
    if found is None:
        return x @ base
    compute = torch.promote_types(x.dtype, torch.float32)
    plain = found.out_scale is None and found.in_scale is None
    path = None
    if found.sparse is not None:
        path = choose(found.sparse, found.counts, bounds, scratch=plain)
        run.paths[path] = run.paths.get(path, 0) + 1
    if path == "scratch":
        assert found.sparse is not None
        y = scratch_product(x, weight, found.sparse, bounds, transposed=transposed).to(compute)
    else:
        scaled = x if found.in_scale is None else _by_row(x, span, found.in_scale, torch.mul)
        y = (scaled @ base).to(compute)
        if found.out_scale is not None:
            y = _by_row(y, span, found.out_scale, torch.mul)
        if found.sparse is not None and path is not None:
            add_sparse(y, x, found.sparse, bounds, path)
    add_low_rank(y, x, found, bounds)
    for group, parts in terms.whole.items():
        here = slice(bounds[group], bounds[group + 1])
        own = adapted_parameter(weight, parts)
        y[here] = (x[here] @ (own if transposed else own.T)).to(compute)
    return y


def _by_row(
    x: Tensor, span: Span, values: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return `function` of positions `(n, width)` and the vector `(G, width)` of their groups."""
    each = values[span.index].unsqueeze(1)
    wide = x.view(span.count, -1, x.shape[-1])
    return function(wide, each).view_as(x).to(x.dtype)


def embedding(
    site: Site, module: nn.Module, terms: Terms, run: Run, rows: Rows, ids: Tensor
) -> Tensor:
    """Return embedded ids, each row by its own table; ids that all rows share are repeated."""
    if site.repeat:
        ids = ids.expand(run.spans.rows.count * site.repeat, *ids.shape[1:])
    first, _, span = grouped(run, rows, ids)
    weight = module._parameters["weight"]
    assert weight is not None
    found = terms.matrices
    flat = first.reshape(-1)
    factor = len(flat) // max(span.count, 1)
    y = functional.embedding(flat, weight)
    if found is not None:
        which = span.index.repeat_interleave(factor)
        y = _embedded(y, flat, which, found)
        bounds = span.times(factor)
        for group, parts in terms.whole.items():
            here = slice(bounds[group], bounds[group + 1])
            y[here] = functional.embedding(flat[here], adapted_parameter(weight, parts))
    return rows.back(y.view(*first.shape, -1), span.count)


def _embedded(y: Tensor, ids: Tensor, which: Tensor, found: Matrices) -> Tensor:
    """Return rows of a table `(n, width)` as their groups have them."""
    if found.out_scale is not None:
        y = (y * found.out_scale[which, ids].unsqueeze(1)).to(y.dtype)
    if found.in_scale is not None:
        y = (y * found.in_scale[which]).to(y.dtype)
    if found.left is not None and found.right is not None:
        added = torch.einsum("nr,nrd->nd", found.left[which, ids], found.right[which])
        y = y.add(added.to(y.dtype))
    if found.sparse is not None:
        _add_entries(y, ids, which, found.sparse)
    return y


def _add_entries(y: Tensor, ids: Tensor, which: Tensor, sparse: Sparse) -> None:
    """Add to `y[i]` the entries of row `ids[i]` of the table of group `which[i]`."""
    starts, ends = sparse.starts(ids, which)
    counts = ends - starts
    place = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    entry = torch.arange(len(place), device=ids.device) + (starts - before)[place]
    flat = place * y.shape[1] + sparse.columns(entry, which[place])
    y.view(-1).index_add_(0, flat, sparse.values[entry].to(y.dtype))


def layer_norm(
    site: Site, module: nn.Module, terms: Terms, run: Run, rows: Rows, x: Tensor
) -> Tensor:
    """Return normalised positions, each row scaled and shifted by its own vectors."""
    del site
    assert isinstance(module, nn.LayerNorm)
    first, _, span = grouped(run, rows, x)
    y = functional.layer_norm(first, module.normalized_shape, None, None, module.eps)
    shape = (span.count, -1, *module.normalized_shape)
    wide = y.reshape(shape)
    for leaf, function in (("weight", torch.mul), ("bias", torch.add)):
        values = terms.vectors.get(leaf, module._parameters.get(leaf))
        if values is not None:
            own = values[span.index].unsqueeze(1) if leaf in terms.vectors else values
            wide = function(wide, own)
    return rows.back(wide.view_as(first), span.count)


Together = Callable[[Site, nn.Module, Terms, Run, Rows, Tensor], Tensor]
TOGETHER: Mapping[Kind, Together] = {
    "linear": linear,
    "conv1d": linear,
    "embedding": embedding,
    "layer_norm": layer_norm,
}
"""Kind of site -> how its groups run together."""
