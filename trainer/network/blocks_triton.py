# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# ruff: noqa: ANN001, ANN202, N803, N806, C416
"""What follows a convolution, in one kernel each way, for CUDA: bias, ReLU, LRN, max pooling.

Batches lie channels last. A lane takes eight neighbouring channels of a place as one vector of
registers, with two or four more on each side, so sums over neighbouring channels need no
exchange between lanes; arithmetic is float32. A lane walks down a column of the image and adds
up the gradient of its biases on the way; lanes store their sums, which are then added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

jit: Callable[[Any], Any] = triton.jit
VECTOR = 8  # channels of a lane
# Threads of a program; how many rows (of windows, of pairs of rows, of places) a lane walks; and
# the most registers of a thread (0: what the compiler wants).
TUNING = {
    "lrn forward": {"threads": 128, "rows": 9, "registers": 0},
    "lrn backward": {"threads": 64, "rows": 7, "registers": 128},
    "pool forward": {"threads": 128, "rows": 9, "registers": 0},
    "pool backward": {"threads": 128, "rows": 14, "registers": 0},
    "relu forward": {"threads": 128, "rows": 16, "registers": 0},
    "relu backward": {"threads": 128, "rows": 16, "registers": 0},
}


@jit
def _split2(t):
    a, b = tl.split(t)
    return (a, b)


@jit
def _split4(t, N: tl.constexpr):
    even, odd = tl.split(tl.reshape(t, (N, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return (a, b, c, d)


@jit
def _split8(t, N: tl.constexpr):
    even, odd = tl.split(tl.reshape(t, (N, 4, 2)))
    a, c, e, g = _split4(even, N)
    b, d, f, h = _split4(odd, N)
    return (a, b, c, d, e, f, g, h)


@jit
def _store8(p, at, mask, v, N: tl.constexpr):
    """Stores eight values of every lane as vector number ``at`` of ``p``."""
    v = [a.to(p.dtype.element_ty) for a in v]
    even = tl.reshape(tl.join(tl.join(v[0], v[4]), tl.join(v[2], v[6])), (N, 4))
    odd = tl.reshape(tl.join(tl.join(v[1], v[5]), tl.join(v[3], v[7])), (N, 4))
    eight = tl.reshape(tl.join(even, odd), (N, 8))
    tl.store(p + at[:, None] * 8 + tl.arange(0, 8)[None, :], eight, mask=mask[:, None])


@jit
def _load(p, at, mask, first: tl.constexpr, COUNT: tl.constexpr):
    """(N, COUNT): elements from ``first`` on, counted from vector number ``at`` of ``p``."""
    where = at[:, None] * 8 + (first + tl.arange(0, COUNT))[None, :]
    return tl.load(p + where, mask=mask[:, None], other=0)


@jit
def _around(p, at, mask, left, right, HALO: tl.constexpr, N: tl.constexpr):
    """Eight channels of every lane and HALO on each side; 0 where the mask or the image ends."""
    own = [a for a in _split8(_load(p, at, mask, 0, 8), N)]
    if HALO == 2:
        before = [a for a in _split2(_load(p, at, mask & left, -2, 2))]
        after = [a for a in _split2(_load(p, at, mask & right, 8, 2))]
        own = before + own + after
    if HALO == 4:
        before = [a for a in _split4(_load(p, at, mask & left, -4, 4), N)]
        after = [a for a in _split4(_load(p, at, mask & right, 8, 4), N)]
        own = before + own + after
    return own


@jit
def _floats(v):
    return [a.to(tl.float32) for a in v]


@jit
def _fives8(q):
    """Twelve values -> eight sums of five neighbours."""
    two = [q[j] + q[j + 1] for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)]
    return [two[j] + two[j + 2] + q[j + 4] for j in (0, 1, 2, 3, 4, 5, 6, 7)]


@jit
def _fives12(q):
    """Sixteen values -> twelve sums of five neighbours."""
    two = [q[j] + q[j + 1] for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)]
    return [two[j] + two[j + 2] + q[j + 4] for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]


@jit
def _max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def _keys(z, at, mask, left, right, b, alpha, k, LRN: tl.constexpr, FIRST: tl.constexpr,
          N: tl.constexpr):  # fmt: skip
    """What is compared in the pooling: max(a, 0), with LRN its square times d^-3/2, which is
    the square of what is pooled and needs one root instead of two. FIRST: ReLU before LRN."""
    if LRN:
        v = _floats(_around(z, at, mask, left, right, 2, N))
        v = [v[j] + b[j] for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
        p = [_max(a, 0.0) for a in v]
        q = [a * a for a in p] if FIRST else [a * a for a in v]
        r = [tl.rsqrt(k + alpha * s) for s in _fives8(q)]
        u = [p[j + 2] * r[j] for j in (0, 1, 2, 3, 4, 5, 6, 7)]
        key = [u[j] * u[j] * r[j] for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    else:
        v = _floats(_around(z, at, mask, left, right, 0, N))
        key = [_max(v[j] + b[j], 0.0) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    return key


@jit
def _row(z, at, mask, left, right, groups, b, alpha, k, LRN: tl.constexpr, FIRST: tl.constexpr,
         N: tl.constexpr):  # fmt: skip
    """The largest keys of three places side by side, and which of the three has them."""
    best = _keys(z, at, mask, left, right, b, alpha, k, LRN, FIRST, N)
    which = [tl.zeros((N,), tl.int32) for _ in best]
    for dx in tl.static_range(1, 3):
        key = _keys(z, at + dx * groups, mask, left, right, b, alpha, k, LRN, FIRST, N)
        which = [tl.where(key[j] > best[j], dx, which[j]) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
        best = [_max(best[j], key[j]) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    return best, which


@jit
def _pool_forward(z, bias, y, cells, lanes, rows, H, W, OH, OW, groups, alpha, k,
                  LRN: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """One lane: rows windows below one another, of eight channels. ``cells``: which of the nine
    places of a window has its largest value; 9 where that is not above 0."""
    lane = tl.program_id(0) * N + tl.arange(0, N)
    mask = lane < lanes
    g, column, image = lane % groups, (lane // groups) % OW, lane // (groups * OW)
    left, right = g > 0, g < groups - 1
    if LRN:
        b = _floats(_around(bias, g, mask, left, right, 2, N))
    else:
        b = _floats(_around(bias, g, mask, left, right, 0, N))
    first = tl.program_id(1) * rows
    at = ((image.to(tl.int64) * H + 2 * first) * W + 2 * column) * groups + g
    to = ((image.to(tl.int64) * OH + first) * OW + column) * groups + g
    best, which = _row(z, at, mask, left, right, groups, b, alpha, k, LRN, FIRST, N)
    for _ in range(first, min(first + rows, OH)):
        mid, mids = _row(z, at + W * groups, mask, left, right, groups, b, alpha, k, LRN, FIRST, N)
        at += 2 * W * groups
        low, lows = _row(z, at, mask, left, right, groups, b, alpha, k, LRN, FIRST, N)
        which = [tl.where(mid[j] > best[j], mids[j] + 3, which[j])
                 for j in (0, 1, 2, 3, 4, 5, 6, 7)]  # fmt: skip
        best = [_max(best[j], mid[j]) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
        which = [tl.where(low[j] > best[j], lows[j] + 6, which[j])
                 for j in (0, 1, 2, 3, 4, 5, 6, 7)]  # fmt: skip
        best = [_max(best[j], low[j]) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
        which = [tl.where(best[j] > 0, which[j], 9) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
        out = [tl.sqrt(a) for a in best] if LRN else best
        _store8(y, to, mask, out, N)
        _store8(cells, to, mask, which, N)
        to += OW * groups
        best, which = low, lows


@jit
def _zeros8(N: tl.constexpr):
    return [tl.zeros((N,), tl.float32) for _ in (0, 1, 2, 3, 4, 5, 6, 7)]


@jit
def _window(gradient, cells, at, mask, left, right, HALO: tl.constexpr, N: tl.constexpr):
    """The gradients of a window's channels and the places that they go to."""
    g = _floats(_around(gradient, at, mask, left, right, HALO, N))
    # Where nothing is loaded the gradient is 0, and the place does not matter.
    return g, _around(cells, at, mask, left, right, HALO, N)


@jit
def _sent(window, cell: tl.constexpr):
    """What a window sends to that place of its nine."""
    g, where = window
    hit = [a == cell for a in where]
    out = [tl.where(hit[j], g[j], 0.0) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    if len(g) > 8:
        out = out + [tl.where(hit[j], g[j], 0.0) for j in (8, 9, 10, 11)]
    return out


@jit
def _sum(a, b):
    out = [a[j] + b[j] for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    if len(a) > 8:
        out = out + [a[j] + b[j] for j in (8, 9, 10, 11)]
    return out


@jit
def _through_lrn(z, at, mask, left, right, b, g, alpha, k, FIRST: tl.constexpr, N: tl.constexpr):
    """The gradients (12) of LRN's outputs -> (8) those of the convolution's."""
    v = _floats(_around(z, at, mask, left, right, 4, N))
    v = [v[j] + b[j] for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]
    if FIRST:
        v = [_max(a, 0.0) for a in v]
    r = [tl.rsqrt(k + alpha * s) for s in _fives12([a * a for a in v])]
    scaled = [g[j] * (r[j] * tl.sqrt(r[j])) for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    t = [scaled[j] * v[j + 2] * (r[j] * r[j]) for j in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    spread = _fives8(t)
    c = 1.5 * alpha  # 2 alpha beta
    out = [scaled[j + 2] - c * v[j + 4] * spread[j] for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    if FIRST:
        out = [tl.where(v[j + 4] > 0, out[j], 0.0) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
    return out


@jit
def _pool_backward(z, bias, gradient, cells, dz, sums, lanes, rows, H, W, OH, OW, groups, alpha, k,
                   LRN: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """One lane: rows squares of 2 x 2 places below one another, of eight channels. The four
    windows that reach into a square are read once; ``sums`` are the lane's of ``dz``."""
    HALO: tl.constexpr = 2 if LRN else 0
    lane = tl.program_id(0) * N + tl.arange(0, N)
    columns = (W + 1) // 2
    mask = lane < lanes
    g, column, image = lane % groups, (lane // groups) % columns, lane // (groups * columns)
    image = image.to(tl.int64)
    left, right = g > 0, g < groups - 1
    if LRN:
        b = _floats(_around(bias, g, mask, left, right, 4, N))
    total = _zeros8(N)
    first = tl.program_id(1) * rows
    within, before = mask & (column < OW), mask & (column > 0) & (column <= OW)
    for i in range(first, min(first + rows, (H + 1) // 2)):
        to = ((image * OH + i) * OW + column) * groups + g
        row = i + lane * 0  # a tensor also in the interpreter
        low, high = row < OH, (row > 0) & (row <= OH)
        here = _window(gradient, cells, to, within & low, left, right, HALO, N)
        beside = _window(gradient, cells, to - groups, before & low, left, right, HALO, N)
        above = _window(gradient, cells, to - OW * groups, within & high, left, right, HALO, N)
        corner = _window(gradient, cells, to - (OW + 1) * groups, before & high, left, right,
                         HALO, N)  # fmt: skip
        at = ((image * H + 2 * i) * W + 2 * column) * groups + g
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                got = _sent(here, 3 * dy + dx)
                if dx == 0:
                    got = _sum(got, _sent(beside, 3 * dy + 2))
                if dy == 0:
                    got = _sum(got, _sent(above, 6 + dx))
                if dx + dy == 0:
                    got = _sum(got, _sent(corner, 8))
                place = at + (dy * W + dx) * groups
                inside = mask & (2 * row + dy < H) & (2 * column + dx < W)
                if LRN:
                    got = _through_lrn(z, place, inside, left, right, b, got, alpha, k, FIRST, N)
                _store8(dz, place, inside, got, N)
                total = _sum(total, got)
    _store8(sums, tl.program_id(1).to(tl.int64) * lanes + lane, mask, total, N)


@jit
def _relu_forward(z, bias, lanes, vectors, groups, ROWS: tl.constexpr, N: tl.constexpr):
    """z <- max(z + bias, 0); one lane: ROWS vectors, ``lanes`` (a multiple of groups) apart."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    mask = at < lanes
    b = _floats(_split8(_load(bias, at % groups, mask, 0, 8), N))
    at = at.to(tl.int64)
    for _ in tl.static_range(ROWS):
        mask = mask & (at < vectors)
        v = _floats(_split8(_load(z, at, mask, 0, 8), N))
        _store8(z, at, mask, [_max(v[j] + b[j], 0.0) for j in (0, 1, 2, 3, 4, 5, 6, 7)], N)
        at += lanes


@jit
def _relu_backward(y, gradient, dz, sums, lanes, vectors, ROWS: tl.constexpr, N: tl.constexpr):
    """dz = gradient where y > 0; one lane as in ``_relu_forward``, ``sums`` are its of dz."""
    lane = tl.program_id(0) * N + tl.arange(0, N)
    mask = lane < lanes
    total = _zeros8(N)
    at = lane.to(tl.int64)
    for _ in tl.static_range(ROWS):
        inside = mask & (at < vectors)
        v = _split8(_load(y, at, inside, 0, 8), N)
        g = _floats(_split8(_load(gradient, at, inside, 0, 8), N))
        g = [tl.where(v[j].to(tl.float32) > 0, g[j], 0.0) for j in (0, 1, 2, 3, 4, 5, 6, 7)]
        _store8(dz, at, inside, g, N)
        total = _sum(total, g)
        at += lanes
    _store8(sums, lane, mask, total, N)


def _launch(name: str, kernel: Any, lanes: int, parts: int, *arguments: Any, **fixed: Any) -> None:
    """``kernel`` for so many lanes, ``parts`` times beside each other, as ``TUNING`` has it."""
    threads, registers = TUNING[name]["threads"], TUNING[name]["registers"]
    if registers:
        fixed["maxnreg"] = registers
    kernel[(triton.cdiv(lanes, threads), parts)](
        *arguments, **fixed, N=threads, num_warps=threads // 32
    )


def pool_forward(
    z: Tensor, bias: Tensor, alpha: float, k: float, first: bool
) -> tuple[Tensor, Tensor]:
    """Sums of a convolution (B, C, H, W) -> ReLU, LRN (alpha 0: none) and pooling of 3 x 3 by 2
    of them with their bias, in the dtype of ``z``; and the places of the largest values.

    ``first``: ReLU before LRN, otherwise after the pooling. LRN has beta 0.75 and windows of 5.
    """
    images, channels, height, width = z.shape
    high, wide = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    y = _empty(z, high, wide, z.dtype)
    cells = _empty(z, high, wide, torch.uint8)
    groups = channels // VECTOR
    lanes, lrn = images * wide * groups, alpha != 0
    name = "lrn forward" if lrn else "pool forward"
    rows = TUNING[name]["rows"]
    _launch(
        name, _pool_forward, lanes, triton.cdiv(high, rows), z, bias, y, cells, lanes, rows,
        height, width, high, wide, groups, alpha, k, LRN=lrn, FIRST=first,
    )  # fmt: skip
    return y, cells


def pool_backward(
    z: Tensor | None, bias: Tensor, gradient: Tensor, cells: Tensor, sides: tuple[int, int],
    alpha: float, k: float, first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of ``pool_forward``'s ``z`` and ``bias`` (float32); ``z``, of these
    ``sides``, is needed with LRN only."""
    images, channels, high, wide = cells.shape
    height, width = sides
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dz = _empty(gradient, height, width, gradient.dtype)
    groups = channels // VECTOR
    lanes, lrn = images * ((width + 1) // 2) * groups, alpha != 0
    name = "lrn backward" if lrn else "pool backward"
    rows = TUNING[name]["rows"]
    parts = triton.cdiv((height + 1) // 2, rows)
    sums = dz.new_empty((parts * lanes // groups, channels), dtype=torch.float32)
    _launch(
        name, _pool_backward, lanes, parts, gradient if z is None else z, bias, gradient, cells,
        dz, sums, lanes, rows, height, width, high, wide, groups, alpha, k, LRN=lrn, FIRST=first,
    )  # fmt: skip
    return dz, sums.sum(0)


def relu_forward_(z: Tensor, bias: Tensor) -> None:
    """z <- max(z + bias, 0) of a convolution's sums (B, C, H, W)."""
    rows = TUNING["relu forward"]["rows"]
    vectors, groups, lanes = _lanes(z, rows)
    _launch("relu forward", _relu_forward, lanes, 1, z, bias, lanes, vectors, groups, ROWS=rows)


def relu_backward(y: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``relu_forward_``'s sums and of the bias (float32), from its result."""
    rows = TUNING["relu backward"]["rows"]
    vectors, groups, lanes = _lanes(y, rows)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dz = torch.empty_like(y)
    sums = y.new_empty((lanes // groups, y.shape[1]), dtype=torch.float32)
    _launch(
        "relu backward", _relu_backward, lanes, 1, y, gradient, dz, sums, lanes, vectors, ROWS=rows
    )
    return dz, sums.sum(0)


def _lanes(z: Tensor, rows: int) -> tuple[int, int, int]:
    """Vectors of ``z``, those of a place, and lanes: places that begin a walk, times those."""
    vectors, groups = z.numel() // VECTOR, z.shape[1] // VECTOR
    return vectors, groups, triton.cdiv(vectors // groups, rows) * groups


def _empty(like: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, device=like.device, dtype=dtype, memory_format=torch.channels_last)
