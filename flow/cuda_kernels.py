"""The Triton kernels of TV-L1 on a GPU (`flow.cuda`).

Each formula stands as in `flow.cpu_kernels`, fused where that fuses and nowhere else, with correctly rounded division
and square root. Only the sign of a zero may differ: it depends on which of two equal zeros a median picks, and no other
value depends on it. Sums are of integers, so their order does not matter.
"""

from typing import Any

import triton
import triton.language as tl

from flow import cpu_kernels

_kernel: Any = triton.jit

# Columns of `flags`, for each pair: which copy of u and of p is current; 1 until a warp's iterations have stopped; how
# many iterations the next launch does; 1 if that does again what went too far.
AT_U, AT_P, ACTIVE, COUNT, AGAIN = (tl.constexpr(i) for i in range(5))
FLAGS = tl.constexpr(5)
_UNITS, _LARGEST_CHANGE = tl.constexpr(float(cpu_kernels.UNITS)), tl.constexpr(float(cpu_kernels.LARGEST_CHANGE))


@_kernel
def _tile(width, rows: tl.constexpr, columns: tl.constexpr, margin: tl.constexpr):
    """Coordinates of this program's tile: y [rows, 1] and x [1, columns]; the first grid dimension counts tiles."""
    across = tl.cdiv(width, columns - 2 * margin)
    tile = tl.program_id(0)
    y = (tile // across) * (rows - 2 * margin) - margin + tl.arange(0, rows)[:, None]
    x = (tile % across) * (columns - 2 * margin) - margin + tl.arange(0, columns)[None, :]
    return y, x


@_kernel
def resize(
    images, found, lefts, after_lefts, tops, after_tops, source_height, source_width, height, width, factor,
    rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """`flow.cpu_kernels.resize` of pictures [N, source_height, source_width], with its tables."""
    y, x = _tile(width, rows, columns, 0)
    in_y, in_x = y < height, x < width
    picture = tl.program_id(1).to(tl.int64)
    images += picture * source_height * source_width
    left, f = tl.load(lefts + x, in_x, 0), tl.load(after_lefts + x, in_x, 0.0)
    top, low = tl.load(tops + y, in_y, 0), tl.load(after_tops + y, in_y, 0.0)
    right, bottom = tl.minimum(left + 1, source_width - 1), tl.minimum(top + 1, source_height - 1)
    top, bottom = top * source_width, bottom * source_width
    above = tl.fma(f, tl.load(images + top + right), (1.0 - f) * tl.load(images + top + left))
    below = tl.fma(f, tl.load(images + bottom + right), (1.0 - f) * tl.load(images + bottom + left))
    resized = tl.fma(low, below, (1.0 - low) * above) * factor
    tl.store(found + picture * height * width + y * width + x, resized, in_y & in_x)


@_kernel
def gradient(images, found, height, width, rows: tl.constexpr, columns: tl.constexpr):
    """I, Ix, Iy [N, 3, H, W] of pictures [N, H, W]: ½ central differences, the edge repeated."""
    y, x = _tile(width, rows, columns, 0)
    inside = (y < height) & (x < width)
    picture, size = tl.program_id(1).to(tl.int64), height * width
    image, target = images + picture * size, found + picture * 3 * size + y * width + x
    right, left = tl.minimum(x + 1, width - 1), tl.maximum(x - 1, 0)
    below, above = tl.minimum(y + 1, height - 1), tl.maximum(y - 1, 0)
    tl.store(target, tl.load(image + y * width + x, inside), inside)
    dx = tl.load(image + y * width + right, inside) - tl.load(image + y * width + left, inside)
    tl.store(target + size, 0.5 * dx, inside)
    dy = tl.load(image + below * width + x, inside) - tl.load(image + above * width + x, inside)
    tl.store(target + 2 * size, 0.5 * dy, inside)


@_kernel
def _cubic(f):
    """Weights of the four neighbours at a fraction f behind the second one (Keys 1981, A = −¾)."""
    before, after = 1.0 - f, f + 1.0
    first = tl.fma(tl.fma(tl.fma(-0.75, after, 3.75), after, -6.0), after, 3.0)
    second = tl.fma(tl.fma(1.25, f, -2.25) * f, f, 1.0)
    third = tl.fma(tl.fma(1.25, before, -2.25) * before, before, 1.0)
    return first, second, third, ((1.0 - first) - second) - third


@_kernel
def _add_tap(image, size, y, x, height, width, weight, a, b, c):
    """The three planes of `image` at (y, x), zero outside, times weight, added to a, b and c."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = image + y * width + x
    a = tl.fma(weight, tl.load(at, inside, 0.0), a)
    b = tl.fma(weight, tl.load(at + size, inside, 0.0), b)
    c = tl.fma(weight, tl.load(at + 2 * size, inside, 0.0), c)
    return a, b, c


@_kernel
def _add_row(image, size, y, x, height, width, row, column0, column1, column2, column3, a, b, c):
    """Four taps side by side, the first one at (y, x)."""
    a, b, c = _add_tap(image, size, y, x, height, width, row * column0, a, b, c)
    a, b, c = _add_tap(image, size, y, x + 1, height, width, row * column1, a, b, c)
    a, b, c = _add_tap(image, size, y, x + 2, height, width, row * column2, a, b, c)
    a, b, c = _add_tap(image, size, y, x + 3, height, width, row * column3, a, b, c)
    return a, b, c


@_kernel
def warp(
    image0, image1, u, constants, flags, pairs, height, width,
    channels: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Cubic warp of I1 and its gradient by u, and what stays the same until the next warp.

    `image0` is [N, H, W], `image1` what `gradient` made, `u` [2, N, channels, H, W]; `constants` [N, 4, H, W] gets
    I1x, I1y, 1/|∇I1|² and I1 − ∇I1·u − I0.
    """
    y, x = _tile(width, rows, columns, 0)
    inside = (y < height) & (x < width)
    pair, size = tl.program_id(1).to(tl.int64), height * width
    u += (tl.load(flags + pair * FLAGS + AT_U) * pairs + pair) * channels * size + y * width + x
    u1, u2 = tl.load(u, inside, 0.0), tl.load(u + size, inside, 0.0)
    # Beyond these positions all neighbours are zero.
    column = tl.minimum(tl.maximum(x.to(tl.float32) + u1, -3.0), (width + 1).to(tl.float32))
    row = tl.minimum(tl.maximum(y.to(tl.float32) + u2, -3.0), (height + 1).to(tl.float32))
    # A GPU's floor takes a subnormal −ε for 0, not for −1 and a fraction of 1; what is interpolated is the same.
    left, top = tl.floor(column), tl.floor(row)
    column0, column1, column2, column3 = _cubic(column - left)
    row0, row1, row2, row3 = _cubic(row - top)
    first, start = left.to(tl.int32) - 1, top.to(tl.int32) - 1
    image1 += pair * 3 * size
    i1, ix, iy = tl.zeros_like(u1), tl.zeros_like(u1), tl.zeros_like(u1)
    i1, ix, iy = _add_row(
        image1, size, start, first, height, width, row0, column0, column1, column2, column3, i1, ix, iy
    )
    i1, ix, iy = _add_row(
        image1, size, start + 1, first, height, width, row1, column0, column1, column2, column3, i1, ix, iy
    )
    i1, ix, iy = _add_row(
        image1, size, start + 2, first, height, width, row2, column0, column1, column2, column3, i1, ix, iy
    )
    i1, ix, iy = _add_row(
        image1, size, start + 3, first, height, width, row3, column0, column1, column2, column3, i1, ix, iy
    )
    inverse = tl.div_rn(1.0, tl.maximum(tl.fma(ix, ix, iy * iy), 1e-30))
    i0 = tl.load(image0 + pair * size + y * width + x, inside, 0.0)
    rho_c = tl.fma(-iy, u2, tl.fma(-ix, u1, i1)) - i0
    constants += pair * 4 * size + y * width + x
    tl.store(constants, ix, inside)
    tl.store(constants + size, iy, inside)
    tl.store(constants + 2 * size, inverse, inside)
    tl.store(constants + 3 * size, rho_c, inside)


@_kernel
def _sort3(a, b, c):
    a, b = tl.minimum(a, b), tl.maximum(a, b)
    b, c = tl.minimum(b, c), tl.maximum(b, c)
    return tl.minimum(a, b), tl.maximum(a, b), c


@_kernel
def _sort5(a, b, c, d, e):
    a, d = tl.minimum(a, d), tl.maximum(a, d)
    b, e = tl.minimum(b, e), tl.maximum(b, e)
    a, c = tl.minimum(a, c), tl.maximum(a, c)
    b, d = tl.minimum(b, d), tl.maximum(b, d)
    a, b = tl.minimum(a, b), tl.maximum(a, b)
    c, e = tl.minimum(c, e), tl.maximum(c, e)
    b, c = tl.minimum(b, c), tl.maximum(b, c)
    d, e = tl.minimum(d, e), tl.maximum(d, e)
    return a, b, tl.minimum(c, d), tl.maximum(c, d), e


@_kernel
def _column3(u, y, x, height, width):
    """The pixels around (y, x) in its column, sorted; the border is repeated."""
    u += tl.minimum(tl.maximum(x, 0), width - 1)
    return _sort3(
        tl.load(u + tl.minimum(tl.maximum(y - 1, 0), height - 1) * width),
        tl.load(u + tl.minimum(y, height - 1) * width),
        tl.load(u + tl.minimum(y + 1, height - 1) * width),
    )


@_kernel
def _column5(u, y, x, height, width):
    """The pixels around (y, x) in its column, sorted; the border is repeated."""
    u += tl.minimum(tl.maximum(x, 0), width - 1)
    return _sort5(
        tl.load(u + tl.minimum(tl.maximum(y - 2, 0), height - 1) * width),
        tl.load(u + tl.minimum(tl.maximum(y - 1, 0), height - 1) * width),
        tl.load(u + tl.minimum(y, height - 1) * width),
        tl.load(u + tl.minimum(y + 1, height - 1) * width),
        tl.load(u + tl.minimum(y + 2, height - 1) * width),
    )


@_kernel
def _median3x3(u, y, x, height, width):
    """The middle of: the columns' largest minimum, their middle median, their smallest maximum."""
    low0, middle0, high0 = _column3(u, y, x - 1, height, width)
    low1, middle1, high1 = _column3(u, y, x, height, width)
    low2, middle2, high2 = _column3(u, y, x + 1, height, width)
    low = tl.maximum(tl.maximum(low0, low1), low2)
    _, middle, _ = _sort3(middle0, middle1, middle2)
    high = tl.minimum(tl.minimum(high0, high1), high2)
    _, middle, _ = _sort3(low, middle, high)
    return middle


@_kernel
def _median5x5(u, y, x, height, width):
    """Sort columns, then rows: value ij is then above (i + 1)(j + 1) − 1 others and below (5 − i)(5 − j) − 1.

    What is above or below 13 of them is not the median. Of the values with i + j = 3 only the largest may still be the
    median, of those with i + j = 5 only the smallest, since three others lie below and three above for certain.
    """
    a0, a1, a2, a3, a4 = _column5(u, y, x - 2, height, width)
    b0, b1, b2, b3, b4 = _column5(u, y, x - 1, height, width)
    c0, c1, c2, c3, c4 = _column5(u, y, x, height, width)
    d0, d1, d2, d3, d4 = _column5(u, y, x + 1, height, width)
    e0, e1, e2, e3, e4 = _column5(u, y, x + 2, height, width)
    _, _, _, v03, v04 = _sort5(a0, b0, c0, d0, e0)
    _, _, v12, v13, v14 = _sort5(a1, b1, c1, d1, e1)
    _, v21, v22, v23, _ = _sort5(a2, b2, c2, d2, e2)
    v30, v31, v32, _, _ = _sort5(a3, b3, c3, d3, e3)
    v40, v41, _, _, _ = _sort5(a4, b4, c4, d4, e4)
    low = tl.maximum(tl.maximum(v03, v12), tl.maximum(v21, v30))
    high = tl.minimum(tl.minimum(v14, v23), tl.minimum(v32, v41))
    low, high = tl.minimum(low, high), tl.maximum(low, high)
    _, second, third, fourth, _ = _sort5(v04, v13, v22, v31, v40)
    # The fourth of these seven: none, one or both of low and high come before it.
    return tl.minimum(fourth, tl.minimum(tl.maximum(third, low), tl.maximum(second, high)))


@_kernel
def median(
    u, flags, chosen, pairs, height, width,
    side: tl.constexpr, channels: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The median of side × side pixels of u, from the current copy to the other; the third dimension counts planes.

    The third plane, if there is one, is no motion and is copied.
    """
    pair, size = tl.load(chosen + tl.program_id(1)).to(tl.int64), height * width
    y, x = _tile(width, rows, columns, 0)
    at = tl.load(flags + pair * FLAGS + AT_U)
    source = u + ((at * pairs + pair) * channels + tl.program_id(2)) * size
    target = u + (((1 - at) * pairs + pair) * channels + tl.program_id(2)) * size
    inside = (y < height) & (x < width)
    if tl.program_id(2) == 2:
        tl.store(target + y * width + x, tl.load(source + y * width + x, inside), inside)
        return
    median = _median3x3(source, y, x, height, width) if side == 3 else _median5x5(source, y, x, height, width)
    tl.store(target + y * width + x, median, inside)


@_kernel
def begin(flags, chosen, count, filtered):
    """Begin an outer iteration: pairs do `count` iterations next, from what the median wrote if `filtered` is 1."""
    flags += tl.load(chosen + tl.program_id(0)) * FLAGS
    tl.store(flags + AT_U, tl.load(flags + AT_U) ^ filtered)
    tl.store(flags + COUNT, count)


@_kernel
def decide(flags, chosen, changes, limit, following, length: tl.constexpr):
    """After a launch of iterations: stop, go back, or do `following` more.

    `flags` is [N, FLAGS], `changes` [N, length] of the launch's iterations, in `flow.cpu_kernels.UNITS`. An iteration
    whose change is not above `limit` is a warp's last one. Pairs that go on do `following` iterations next time.
    """
    pair = tl.load(chosen + tl.program_id(0))
    flags += pair * FLAGS
    count = tl.load(flags + COUNT)
    if count == 0:
        return
    again = tl.load(flags + AGAIN)
    k = tl.arange(0, length)
    small = (k < count) & (tl.load(changes + pair * length + k) <= limit)
    needed = tl.min(tl.where(small, k + 1, length + 1), 0)
    stop = (again == 0) & (needed <= count)
    back = stop & (needed < count)
    swap = tl.where(back, 0, 1)
    tl.store(flags + AT_U, tl.load(flags + AT_U) ^ swap)
    tl.store(flags + AT_P, tl.load(flags + AT_P) ^ swap)
    tl.store(flags + ACTIVE, tl.where(stop, 0, tl.load(flags + ACTIVE)))
    tl.store(flags + COUNT, tl.where(back, needed, tl.where(stop | (again == 1), 0, following)))
    tl.store(flags + AGAIN, 1 - swap)


@_kernel
def _new_u(
    a, b, p11, p11_left, p12, p12_above, p21, p21_left, p22, p22_above, ix, iy, inverse, rho_c, l_t, theta
):  # fmt: skip
    """What an iteration makes of u."""
    rho = tl.fma(ix, a, tl.fma(iy, b, rho_c))
    step = tl.minimum(tl.maximum(-rho * inverse, -l_t), l_t)
    div_p1 = (p11 - p11_left) + (p12 - p12_above)
    div_p2 = (p21 - p21_left) + (p22 - p22_above)
    return tl.fma(theta, div_p1, tl.fma(step, ix, a)), tl.fma(theta, div_p2, tl.fma(step, iy, b))


@_kernel
def _new_p(ax, ay, bx, by, p11, p12, p21, p22, taut):
    """What an iteration makes of p; (ax, ay) is the gradient of the new u1, (bx, by) of the new u2."""
    norm_a = tl.fma(taut, tl.sqrt_rn(tl.fma(ax, ax, ay * ay)), 1.0)
    norm_b = tl.fma(taut, tl.sqrt_rn(tl.fma(bx, bx, by * by)), 1.0)
    both = tl.div_rn(1.0, norm_a * norm_b)  # one division for two
    to_a, to_b = both * norm_b, both * norm_a
    p11, p12 = tl.fma(taut, ax, p11) * to_a, tl.fma(taut, ay, p12) * to_a
    p21, p22 = tl.fma(taut, bx, p21) * to_b, tl.fma(taut, by, p22) * to_b
    return p11, p12, p21, p22


@_kernel
def _new_light(a, b, light, lit, p31, p31_left, p32, p32_above, ix, iy, inverse, gamma, l_t, theta):
    """What an iteration makes of u3; `lit` is ρ with it."""
    rho = tl.fma(ix, a, tl.fma(iy, b, lit))
    step = tl.minimum(tl.maximum(-rho * inverse, -l_t), l_t)
    div_p3 = (p31 - p31_left) + (p32 - p32_above)
    return tl.fma(theta, div_p3, tl.fma(step, gamma, light))


@_kernel
def _new_light_p(cx, cy, p31, p32, taut):
    """What an iteration makes of p of u3; (cx, cy) is the gradient of the new one."""
    to_c = tl.div_rn(1.0, tl.fma(taut, tl.sqrt_rn(tl.fma(cx, cx, cy * cy)), 1.0))
    return tl.fma(taut, cx, p31) * to_c, tl.fma(taut, cy, p32) * to_c


@_kernel
def _change(da, db, counted):
    """The squared change of u in this tile where it is counted, in `flow.cpu_kernels.UNITS`: int64."""
    change = (tl.minimum(tl.fma(da, da, db * db), _LARGEST_CHANGE) * _UNITS).to(tl.int32)
    return tl.sum(tl.sum(tl.where(counted, change, 0).to(tl.int64), 1), 0)


@_kernel
def _load_and_update_u(u, p, constants, y, x, height, width, gamma, l_t, theta, channels: tl.constexpr):
    """u1, u2, p11, p12, p21, p22 and the new u1, u2 at (y, x)."""
    inside, size, o = (y < height) & (x < width), height * width, y * width + x
    has_left, has_above = inside & (x > 0), inside & (y > 0)
    u, p11s, constants = u + o, p + o, constants + o
    p12s, p21s, p22s = p11s + size, p11s + 2 * size, p11s + 3 * size
    a, b = tl.load(u, inside, 0.0), tl.load(u + size, inside, 0.0)
    p11, p11_left = tl.load(p11s, inside, 0.0), tl.load(p11s - 1, has_left, 0.0)
    p12, p12_above = tl.load(p12s, inside, 0.0), tl.load(p12s - width, has_above, 0.0)
    p21, p21_left = tl.load(p21s, inside, 0.0), tl.load(p21s - 1, has_left, 0.0)
    p22, p22_above = tl.load(p22s, inside, 0.0), tl.load(p22s - width, has_above, 0.0)
    ix, iy = tl.load(constants, inside, 0.0), tl.load(constants + size, inside, 0.0)
    inverse, rho_c = tl.load(constants + 2 * size, inside, 0.0), tl.load(constants + 3 * size, inside, 0.0)
    if channels == 3:
        rho_c = tl.fma(gamma, tl.load(u + 2 * size, inside, 0.0), rho_c)
    new_a, new_b = _new_u(
        a, b, p11, p11_left, p12, p12_above, p21, p21_left, p22, p22_above, ix, iy, inverse, rho_c, l_t, theta
    )
    return a, b, p11, p12, p21, p22, new_a, new_b


@_kernel
def _load_and_update_light(u, p, constants, y, x, height, width, gamma, l_t, theta):
    """P31, p32, u3 and the new u3 at (y, x)."""
    inside, size, o = (y < height) & (x < width), height * width, y * width + x
    u, p31s, p32s, constants = u + o, p + o + 4 * size, p + o + 5 * size, constants + o
    a, b, light = tl.load(u, inside, 0.0), tl.load(u + size, inside, 0.0), tl.load(u + 2 * size, inside, 0.0)
    p31, p31_left = tl.load(p31s, inside, 0.0), tl.load(p31s - 1, inside & (x > 0), 0.0)
    p32, p32_above = tl.load(p32s, inside, 0.0), tl.load(p32s - width, inside & (y > 0), 0.0)
    ix, iy = tl.load(constants, inside, 0.0), tl.load(constants + size, inside, 0.0)
    inverse, rho_c = tl.load(constants + 2 * size, inside, 0.0), tl.load(constants + 3 * size, inside, 0.0)
    lit = tl.fma(gamma, light, rho_c)
    new = _new_light(a, b, light, lit, p31, p31_left, p32, p32_above, ix, iy, inverse, gamma, l_t, theta)
    return p31, p32, light, new


@_kernel
def _store_state(u, p, size, a, b, p11, p12, p21, p22, where):
    """U and p of the pixels that `u` and `p` point to; planes are `size` pixels apart."""
    tl.store(u, a, where)
    tl.store(u + size, b, where)
    tl.store(p, p11, where)
    tl.store(p + size, p12, where)
    tl.store(p + 2 * size, p21, where)
    tl.store(p + 3 * size, p22, where)


@_kernel
def _store_light(u, p, size, light, p31, p32, where):
    """U3 and its p, likewise."""
    tl.store(u + 2 * size, light, where)
    tl.store(p + 4 * size, p31, where)
    tl.store(p + 5 * size, p32, where)


@_kernel
def iterate_once(
    u, p, constants, flags, chosen, changes, pairs, height, width, l_t, theta, taut, gamma,
    length: tl.constexpr, channels: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """One iteration; the new u to the right and below is computed a second time instead of waiting for it.

    `u` is [2, N, channels, H, W], `p` [2, N, 2 · channels, H, W], `constants` what `warp` made, `flags` [N, FLAGS];
    `chosen` lists the pairs to work on; each tile adds its change to `changes` [N, length] int64; `pairs` is N; `l_t`,
    `theta` and `taut` are λθ, θ and τ/θ. The third channel is the illumination, whose weight is `gamma`.
    """
    pair, size = tl.load(chosen + tl.program_id(1)).to(tl.int64), height * width
    if tl.load(flags + pair * FLAGS + COUNT) == 0:
        return
    at_u, at_p = tl.load(flags + pair * FLAGS + AT_U), tl.load(flags + pair * FLAGS + AT_P)
    y, x = _tile(width, rows, columns, 0)
    inside = (y < height) & (x < width)
    from_u = u + (at_u * pairs + pair) * channels * size
    from_p = p + (at_p * pairs + pair) * 2 * channels * size
    constants += pair * 4 * size
    a, b, p11, p12, p21, p22, new_a, new_b = _load_and_update_u(
        from_u, from_p, constants, y, x, height, width, gamma, l_t, theta, channels
    )
    _, _, _, _, _, _, right_a, right_b = _load_and_update_u(
        from_u, from_p, constants, y, x + 1, height, width, gamma, l_t, theta, channels
    )
    _, _, _, _, _, _, below_a, below_b = _load_and_update_u(
        from_u, from_p, constants, y + 1, x, height, width, gamma, l_t, theta, channels
    )
    has_right, has_below = x + 1 < width, y + 1 < height
    ax, bx = tl.where(has_right, right_a - new_a, 0.0), tl.where(has_right, right_b - new_b, 0.0)
    ay, by = tl.where(has_below, below_a - new_a, 0.0), tl.where(has_below, below_b - new_b, 0.0)
    p11, p12, p21, p22 = _new_p(ax, ay, bx, by, p11, p12, p21, p22, taut)
    to_u = u + ((1 - at_u) * pairs + pair) * channels * size + y * width + x
    to_p = p + ((1 - at_p) * pairs + pair) * 2 * channels * size + y * width + x
    if channels == 3:
        p31, p32, old_light, light = _load_and_update_light(
            from_u, from_p, constants, y, x, height, width, gamma, l_t, theta
        )
        _, _, _, right_light = _load_and_update_light(
            from_u, from_p, constants, y, x + 1, height, width, gamma, l_t, theta
        )
        _, _, _, below_light = _load_and_update_light(
            from_u, from_p, constants, y + 1, x, height, width, gamma, l_t, theta
        )
        cx, cy = tl.where(has_right, right_light - light, 0.0), tl.where(has_below, below_light - light, 0.0)
        p31, p32 = _new_light_p(cx, cy, p31, p32, taut)
        _store_light(to_u, to_p, size, light, p31, p32, inside)
        tl.atomic_add(changes + pair * length, _change(light - old_light, 0.0, inside))
    _store_state(to_u, to_p, size, new_a, new_b, p11, p12, p21, p22, inside)
    tl.atomic_add(changes + pair * length, _change(new_a - a, new_b - b, inside))


@_kernel
def iterate(
    u, p, constants, flags, chosen, changes, pairs, height, width, l_t, theta, taut, gamma,
    length: tl.constexpr, channels: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, margin: tl.constexpr,
):  # fmt: skip
    """As many iterations as `flags` say, at most margin, without leaving the registers; arguments as above.

    Each iteration spoils another pixel along the tile's border, where neighbours are missing. Beyond the picture u and
    p are 0, and they stay so since no gradient is taken there.
    """
    pair, size = tl.load(chosen + tl.program_id(1)).to(tl.int64), height * width
    count = tl.load(flags + pair * FLAGS + COUNT)
    if count == 0:
        return
    at_u, at_p = tl.load(flags + pair * FLAGS + AT_U), tl.load(flags + pair * FLAGS + AT_P)
    y, x = _tile(width, rows, columns, margin)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    o = y * width + x
    from_u = u + (at_u * pairs + pair) * channels * size + o
    from_p = p + (at_p * pairs + pair) * 2 * channels * size + o
    a, b = tl.load(from_u, inside, 0.0), tl.load(from_u + size, inside, 0.0)
    p11, p12 = tl.load(from_p, inside, 0.0), tl.load(from_p + size, inside, 0.0)
    p21, p22 = tl.load(from_p + 2 * size, inside, 0.0), tl.load(from_p + 3 * size, inside, 0.0)
    constants += pair * 4 * size + o
    ix, iy = tl.load(constants, inside, 0.0), tl.load(constants + size, inside, 0.0)
    inverse, rho_c = tl.load(constants + 2 * size, inside, 0.0), tl.load(constants + 3 * size, inside, 0.0)
    lit = rho_c
    if channels == 3:
        light = tl.load(from_u + 2 * size, inside, 0.0)
        p31, p32 = tl.load(from_p + 4 * size, inside, 0.0), tl.load(from_p + 5 * size, inside, 0.0)

    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    everywhere = tl.zeros([rows, columns], tl.int32)
    left, right = everywhere + tl.maximum(column - 1, 0), everywhere + tl.minimum(column + 1, columns - 1)
    above, below = everywhere + tl.maximum(row - 1, 0), everywhere + tl.minimum(row + 1, rows - 1)
    has_right, has_below = inside & (x + 1 < width), inside & (y + 1 < height)
    valid = (row >= margin) & (row < rows - margin) & (column >= margin) & (column < columns - margin) & inside
    for k in range(count):
        if channels == 3:
            lit, old_light = tl.fma(gamma, light, rho_c), light
            light = _new_light(
                a, b, light, lit, p31, tl.gather(p31, left, 1), p32, tl.gather(p32, above, 0),
                ix, iy, inverse, gamma, l_t, theta,
            )  # fmt: skip
            tl.atomic_add(changes + pair * length + k, _change(light - old_light, 0.0, valid))
            cx = tl.where(has_right, tl.gather(light, right, 1) - light, 0.0)
            cy = tl.where(has_below, tl.gather(light, below, 0) - light, 0.0)
            p31, p32 = _new_light_p(cx, cy, p31, p32, taut)
        new_a, new_b = _new_u(
            a, b, p11, tl.gather(p11, left, 1), p12, tl.gather(p12, above, 0),
            p21, tl.gather(p21, left, 1), p22, tl.gather(p22, above, 0), ix, iy, inverse, lit, l_t, theta,
        )  # fmt: skip
        tl.atomic_add(changes + pair * length + k, _change(new_a - a, new_b - b, valid))
        a, b = new_a, new_b
        ax = tl.where(has_right, tl.gather(a, right, 1) - a, 0.0)
        bx = tl.where(has_right, tl.gather(b, right, 1) - b, 0.0)
        ay = tl.where(has_below, tl.gather(a, below, 0) - a, 0.0)
        by = tl.where(has_below, tl.gather(b, below, 0) - b, 0.0)
        p11, p12, p21, p22 = _new_p(ax, ay, bx, by, p11, p12, p21, p22, taut)

    to_u = u + ((1 - at_u) * pairs + pair) * channels * size + o
    to_p = p + ((1 - at_p) * pairs + pair) * 2 * channels * size + o
    _store_state(to_u, to_p, size, a, b, p11, p12, p21, p22, valid)
    if channels == 3:
        _store_light(to_u, to_p, size, light, p31, p32, valid)
