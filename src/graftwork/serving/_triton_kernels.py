"""The kernels behind `_triton`, imported only when one is launched: importing this needs triton.

Rows of a sparse update lie one after the other, group after group; a *tile* is some positions of
one group, a *block* some rows. A program does one block of one tile and adds to `y` once, so that
results depend neither on the order of programs nor on who shares the batch. Sums are float32.
"""
# No future annotations here: triton reads `tl.constexpr` off the functions.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# mypy: disallow-untyped-decorators=False, warn-unreachable=False
# ruff: noqa: PLR0913 (the arguments of a kernel are its launch)

import triton
import triton.language as tl


@triton.jit
def _find_tile(
    bounds, index, groups, POSITIONS: tl.constexpr, GROUPS: tl.constexpr, ALIGNED: tl.constexpr
):
    """Return group, first position, start and end of the group of tile `index`.

    Group sizes are known on the device only, so each program counts the tiles of all groups: two
    loads of at most `GROUPS` numbers that every program shares, hence in the cache. The group is
    `groups` or more where there is no such tile: the grid is an upper bound.

    With `ALIGNED`, tiles begin at multiples of `POSITIONS`, also before the start of the group.
    """
    ids = tl.arange(0, GROUPS)
    held = ids < groups
    ends = tl.load(bounds + 1 + ids, mask=held, other=2147483647).to(tl.int32)
    if POSITIONS == 1:
        # A tile is a position.
        first = tl.load(bounds).to(tl.int32) + index
        return tl.sum((ends <= first).to(tl.int32), 0), first, first, first + 1
    starts = tl.load(bounds + ids, mask=held, other=2147483647).to(tl.int32)
    origin = starts // POSITIONS * POSITIONS if ALIGNED else starts
    tiles = tl.where(ends > starts, (ends - origin + POSITIONS - 1) // POSITIONS, 0)
    group = tl.sum((tl.cumsum(tiles, 0) <= index).to(tl.int32), 0)
    before = tl.sum(tl.where(ids < group, tiles, 0), 0)
    start = tl.load(bounds + tl.minimum(group, groups - 1)).to(tl.int32)
    end = tl.load(bounds + tl.minimum(group + 1, groups)).to(tl.int32)
    if ALIGNED:
        # Written as a product, so that the compiler sees what it may read by vectors.
        first = (start // POSITIONS + index - before) * POSITIONS
    else:
        first = start + (index - before) * POSITIONS
    return group, first, start, end


@triton.jit
def _groups_of(bounds, positions, groups, GROUPS: tl.constexpr):
    """Return the group of each of `(P,)` positions from `bounds[0]` on; `groups` past the last."""
    ids = tl.arange(0, GROUPS)
    ends = tl.load(bounds + 1 + ids, mask=ids < groups, other=2147483647).to(tl.int32)
    return tl.sum((ends[None, :] <= positions[:, None]).to(tl.int32), 1)


@triton.jit
def _products(x_rows, valid, cols, values, offsets, entry, held, SHARED: tl.constexpr):
    """Return `value * x[col]` of `(R, W)` entries at P positions, `(P, R, W)`, 0 where not held.

    With `SHARED`, position p reads its own values, `offsets[p]` further on; positions of entries
    are read once for all P.
    """
    col = tl.load(cols + entry, mask=held, other=0)
    mask = valid[:, None, None] & held[None, :, :]
    if SHARED:
        place = values + offsets[:, None, None] + entry[None, :, :]
        value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    else:
        value = tl.load(values + entry, mask=held, other=0.0).to(tl.float32)[None, :, :]
    got = tl.load(x_rows[:, None, None] + col[None, :, :], mask=mask, other=0.0)
    return value * got.to(tl.float32)


@triton.jit
def _row_product(x, cols, values, begin, end, WIDE: tl.constexpr):
    """Return the product of one row's entries from `begin` to `end` and one row of x."""
    parts = tl.zeros([WIDE], tl.float32)
    for at in range(begin, end, WIDE):
        entry = at + tl.arange(0, WIDE)
        held = entry < end
        col = tl.load(cols + entry, mask=held, other=0)
        value = tl.load(values + entry, mask=held, other=0.0).to(tl.float32)
        parts += value * tl.load(x + col, mask=held, other=0.0).to(tl.float32)
    return tl.sum(parts, 0)


@triton.jit(do_not_specialize=["groups", "entries"])
def rows_kernel(
    y,
    x,
    bounds,
    crow,
    cols,
    values,
    groups,
    out,
    entries,
    y_step,
    x_step,
    POSITIONS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Sparse products of short tiles: lanes run along the entries of rows, x is gathered.

    `WIDTH` entries of each of `ROWS` rows are taken at a time, up to `LONG` of a row; what is
    left of the few longer rows is taken `WIDE` entries at a time, row by row, so that one dense
    row does not make its whole block wait.
    """
    blocks = tl.cdiv(out, ROWS)
    index = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    if SHARED:
        first = tl.load(bounds).to(tl.int32) + index * POSITIONS
        end = tl.load(bounds + groups).to(tl.int32)
        if first >= end:
            return
        p = first + tl.arange(0, POSITIONS)
        offsets = _groups_of(bounds, p, groups, GROUPS).to(tl.int64) * entries
        line = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    else:
        group, first, _, end = _find_tile(bounds, index, groups, POSITIONS, GROUPS, False)
        if group >= groups:
            return
        p = first + tl.arange(0, POSITIONS)
        offsets = p.to(tl.int64) * 0
        line = group.to(tl.int64) * out + block * ROWS + tl.arange(0, ROWS)
    valid = p < end
    local = tl.arange(0, ROWS)
    inside = block * ROWS + local < out
    begin = tl.load(crow + line, mask=inside, other=0)
    length = tl.load(crow + line + 1, mask=inside, other=0) - begin
    x_rows = x + p.to(tl.int64) * x_step
    longest = tl.max(length, 0)
    parts = tl.zeros([POSITIONS, ROWS, WIDTH], tl.float32)
    for at in range(0, tl.minimum(longest, LONG), WIDTH):
        ahead = at + tl.arange(0, WIDTH)[None, :]
        entry = begin[:, None] + ahead
        held = ahead < length[:, None]
        parts += _products(x_rows, valid, cols, values, offsets, entry, held, SHARED)
    total = tl.sum(parts, 2)
    if longest > LONG:
        row = tl.min(tl.where(length > LONG, local, ROWS), 0)
        while row < ROWS:
            at = tl.sum(tl.where(local == row, begin, 0), 0)
            stop = at + tl.sum(tl.where(local == row, length, 0), 0)
            for q in range(tl.minimum(POSITIONS, end - first)):
                # Scalars: a vector would have every thread hold all rows of `total`.
                here = p == first + q
                own = values + tl.sum(tl.where(here, offsets, 0), 0)
                line_x = x + (first + q).to(tl.int64) * x_step
                rest = _row_product(line_x, cols, own, at + LONG, stop, WIDE)
                total += tl.where(here[:, None] & (local == row)[None, :], rest, 0.0)
            row = tl.min(tl.where((length > LONG) & (local > row), local, ROWS), 0)
    place = y + p.to(tl.int64)[:, None] * y_step + (block * ROWS + local)[None, :]
    mask = valid[:, None] & inside[None, :]
    old = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (old + total).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["groups", "row_step", "value_step"])
def columns_kernel(
    y,
    turned,
    bounds,
    crow,
    cols,
    values,
    groups,
    out,
    row_step,
    value_step,
    y_step,
    turned_step,
    POSITIONS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    AHEAD: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sparse products of long tiles: lanes run along positions, x is read transposed.

    `turned` is x transposed, `(in, turned_step)`, padded to whole tiles: a column of x at
    consecutive positions is one run of memory, read by aligned vectors without a mask. Group g
    has its rows at `g * row_step` of crow and its values `g * value_step` further on: (out, 0) for
    supports of their own, (0, nnz) for a shared one.
    """
    blocks = tl.cdiv(out, ROWS)
    index = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    group, first, start, end = _find_tile(bounds, index, groups, POSITIONS, GROUPS, True)
    if group >= groups:
        return
    p = first + tl.arange(0, POSITIONS)
    local = tl.arange(0, ROWS)
    inside = block * ROWS + local < out
    line = group.to(tl.int64) * row_step + block * ROWS + local
    begin = tl.load(crow + line, mask=inside, other=0)
    length = tl.load(crow + line + 1, mask=inside, other=0) - begin
    own = values + group.to(tl.int64) * value_step
    longest = tl.max(length, 0)
    total = tl.zeros([ROWS, POSITIONS], tl.float32)
    for at in range(0, tl.minimum(longest, LONG), AHEAD):
        # Unrolled: AHEAD loads of x are under way at a time.
        for step in tl.static_range(AHEAD):
            held = at + step < length
            col = tl.load(cols + begin + at + step, mask=held, other=0)
            value = tl.load(own + begin + at + step, mask=held, other=0.0).to(tl.float32)
            run = turned + col.to(tl.int64)[:, None] * turned_step + p[None, :]
            got = tl.load(run, mask=held[:, None], other=0.0)
            total += value[:, None] * got.to(tl.float32)
    if longest > LONG:
        row = tl.min(tl.where(length > LONG, local, ROWS), 0)
        while row < ROWS:
            at = tl.sum(tl.where(local == row, begin, 0), 0)
            stop = at + tl.sum(tl.where(local == row, length, 0), 0)
            rest = tl.zeros([WIDE, POSITIONS], tl.float32)
            for chunk in range(at + LONG, stop, WIDE):
                entry = chunk + tl.arange(0, WIDE)
                col = tl.load(cols + entry, mask=entry < stop, other=0)
                value = tl.load(own + entry, mask=entry < stop, other=0.0).to(tl.float32)
                run = turned + col.to(tl.int64)[:, None] * turned_step + p[None, :]
                got = tl.load(run, mask=(entry < stop)[:, None], other=0.0)
                rest += value[:, None] * got.to(tl.float32)
            total += tl.where(local[:, None] == row, tl.sum(rest, 0)[None, :], 0.0)
            row = tl.min(tl.where((length > LONG) & (local > row), local, ROWS), 0)
    place = y + p.to(tl.int64)[None, :] * y_step + (block * ROWS + local)[:, None]
    mask = inside[:, None] & ((p >= start) & (p < end))[None, :]
    old = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (old + total).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["groups", "count", "span"])
def shrink_kernel(
    hidden,
    x,
    bounds,
    right,
    groups,
    count,
    rank,
    width,
    span,
    x_step,
    POSITIONS: tl.constexpr,
    GROUPS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Write `right[g] @ x[p]` to hidden `(slices, count, rank)`, a slice `span` blocks of columns.

    Slices give work to the whole card where positions are few; `expand_kernel` adds them up in a
    fixed order. Grid: tiles, slices, blocks of ranks.
    """
    index = tl.program_id(0)
    group, first, _, end = _find_tile(bounds, index, groups, POSITIONS, GROUPS, False)
    if group >= groups:
        return
    p = first + tl.arange(0, POSITIONS)
    valid = p < end
    ranks = tl.program_id(2) * RANKS + tl.arange(0, RANKS)
    x_rows = x + p.to(tl.int64) * x_step
    r_rows = right + (group.to(tl.int64) * rank + ranks) * width
    begin = tl.program_id(1) * span * BLOCK
    lines = tl.zeros([RANKS, BLOCK], tl.float32)
    total = tl.zeros([POSITIONS, RANKS], tl.float32)
    for at in range(begin, tl.minimum(begin + span * BLOCK, width), BLOCK):
        col = at + tl.arange(0, BLOCK)
        held = col < width
        a = tl.load(r_rows[:, None] + col, mask=(ranks < rank)[:, None] & held[None, :], other=0.0)
        b = tl.load(x_rows[:, None] + col, mask=valid[:, None] & held[None, :], other=0.0)
        if POSITIONS == 1:
            lines += a.to(tl.float32) * b.to(tl.float32)
        elif NATIVE:
            total = tl.dot(b, tl.trans(a), total)
        else:
            a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(b, tl.trans(a), total, input_precision="tf32x3")
    if POSITIONS == 1:
        total = tl.sum(lines, 1)[None, :]
    line = tl.program_id(1).to(tl.int64) * count + p
    place = hidden + line[:, None] * rank + ranks[None, :]
    tl.store(place, total, mask=valid[:, None] & (ranks < rank)[None, :])


@triton.jit(do_not_specialize=["groups", "count", "slices"])
def expand_kernel(
    y,
    hidden,
    bounds,
    left,
    groups,
    count,
    rank,
    out,
    slices,
    y_step,
    POSITIONS: tl.constexpr,
    GROUPS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add `left[g] @ hidden[p]`, hidden summed over its slices, to a block of outputs of a tile."""
    blocks = tl.cdiv(out, BLOCK)
    index = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    group, first, _, end = _find_tile(bounds, index, groups, POSITIONS, GROUPS, False)
    if group >= groups:
        return
    p = first + tl.arange(0, POSITIONS)
    valid = p < end
    o = block * BLOCK + tl.arange(0, BLOCK)
    inside = o < out
    l_rows = left + (group.to(tl.int64) * out + o) * rank
    total = tl.zeros([POSITIONS, BLOCK], tl.float32)
    for at in range(0, rank, RANKS):
        ranks = at + tl.arange(0, RANKS)
        real = ranks < rank
        a = tl.zeros([POSITIONS, RANKS], tl.float32)
        for piece in range(slices):
            line = (piece * count + p).to(tl.int64)
            mask = valid[:, None] & real[None, :]
            a += tl.load(hidden + line[:, None] * rank + ranks[None, :], mask=mask, other=0.0)
        b = tl.load(l_rows[:, None] + ranks, mask=inside[:, None] & real[None, :], other=0.0)
        b = b.to(tl.float32)
        if POSITIONS == 1:
            total += tl.sum(a * b, 1)[None, :]
        else:
            total = tl.dot(a, tl.trans(b), total, input_precision="tf32x3")
    place = y + p.to(tl.int64)[:, None] * y_step + o[None, :]
    mask = valid[:, None] & inside[None, :]
    old = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (old + total).to(y.dtype.element_ty), mask=mask)


INTERPRETED = not isinstance(rows_kernel, triton.runtime.JITFunction)
"""Whether triton runs these on the CPU, as TRITON_INTERPRET=1 before its import has it."""
