"""The loops of TV-L1 on the CPU (`flow.cpu`), which LLVM turns into vector instructions.

The arithmetic is IEEE float32 in the order that is written here, fused where it says so; nothing is reordered or
approximated. So the same pair should give the same bits on any processor that keeps to IEEE.

What made it fast, in this order:
- Rows are functions of their own whose arguments are declared not to overlap. Without that, LLVM would have to compare
  dozens of pairs of pointers before each row, gives up, and works on one pixel at a time.
- No double precision, no 64-bit integers, one division for two, no special first and last columns.
- u of a row and p of the row above are one loop, so that divisions and roots wait behind other work.
- Iterations follow each other through the picture one row apart, so that a row is in the cache for all of them.
- The solver runs ahead of the stopping rule by as many iterations as it expects to need, and goes back where
  that was too far.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

# Guard columns at the left of each row: they hold p = 0 and keep rows on cache lines.
GUARD = 16
# The change of a pixel counts in whole units of 2⁻²⁴ px², so that a sum does not depend on its order. The largest
# change that the thresholding step and the divergence can make with default parameters is 98 px².
UNITS = np.float32(2**24)
LARGEST_CHANGE = np.float32(127)
# Iterations that follow each other through the picture: their rows fit the second-level cache at 340 columns.
LONGEST_BLOCK = 10
PLANES, STATE = 10, 6  # of a row: u1, u2, p11, p12, p21, p22 change with each iteration; ∂x, ∂y, 1/|∇|², ρ do not
MARGIN = 4  # zeros around a picture that is warped

_ONE, _ZERO, _HALF = np.float32(1), np.float32(0), np.float32(0.5)


class _DistinctArrays(Compiler):
    """Compiles a function whose array arguments never overlap where one of them is written."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


_compiled: Any = njit(nogil=True, error_model="numpy", cache=True)
_compiled_row: Any = njit(nogil=True, error_model="numpy", cache=True, pipeline_class=_DistinctArrays)


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""
    return types.float32(a, b, c), lambda _context, builder, _signature, values: builder.fma(*values)


@_compiled_row
def update_row(
    u1, u2, p11, p11_left, p12, p21, p21_left, p22, ix, iy, inverse, rho_c,
    up_u1, up_u1_right, up_u2, up_u2_right, up_p11, up_p12, up_p21, up_p22, has_right, changes, l_t, theta, taut,
):  # fmt: skip
    """One iteration's u of one row, and its p of the row above, which waited for that; in place.

    `u1` to `rho_c` are this row, `…_left` the same one column to the left; `up_…` are the row above, `…_right` the same
    one column to the right; `has_right` is 1 where there is such a column, else 0; `changes` gets the squared change of
    u in `UNITS`; `l_t`, `theta` and `taut` are λθ, θ and τ/θ.
    """
    for x in range(u1.shape[0]):
        a, b = u1[x], u2[x]
        above_p12, above_p22 = up_p12[x], up_p22[x]
        rho = fma(ix[x], a, fma(iy[x], b, rho_c[x]))
        step = min(max(-rho * inverse[x], -l_t), l_t)
        div_p1 = (p11[x] - p11_left[x]) + (p12[x] - above_p12)
        div_p2 = (p21[x] - p21_left[x]) + (p22[x] - above_p22)
        new_a = fma(theta, div_p1, fma(step, ix[x], a))
        new_b = fma(theta, div_p2, fma(step, iy[x], b))
        u1[x], u2[x] = new_a, new_b
        da, db = new_a - a, new_b - b
        changes[x] = np.int32(min(fma(da, da, db * db), LARGEST_CHANGE) * UNITS)
        a, b = up_u1[x], up_u2[x]
        ax, ay = (up_u1_right[x] - a) * has_right[x], new_a - a
        bx, by = (up_u2_right[x] - b) * has_right[x], new_b - b
        norm_a = fma(taut, np.sqrt(fma(ax, ax, ay * ay)), _ONE)
        norm_b = fma(taut, np.sqrt(fma(bx, bx, by * by)), _ONE)
        both = _ONE / (norm_a * norm_b)  # one division for two
        to_a, to_b = both * norm_b, both * norm_a
        up_p11[x] = fma(taut, ax, up_p11[x]) * to_a
        up_p12[x] = fma(taut, ay, above_p12) * to_a
        up_p21[x] = fma(taut, bx, up_p21[x]) * to_b
        up_p22[x] = fma(taut, by, above_p22) * to_b


@_compiled_row
def update_last_p(u1, u1_right, u2, u2_right, p11, p21, has_right, taut):
    """The p of the last row, which has no row below: p12 and p22 stay 0."""
    for x in range(u1.shape[0]):
        ax, bx = (u1_right[x] - u1[x]) * has_right[x], (u2_right[x] - u2[x]) * has_right[x]
        norm_a, norm_b = fma(taut, np.sqrt(ax * ax), _ONE), fma(taut, np.sqrt(bx * bx), _ONE)
        both = _ONE / (norm_a * norm_b)
        p11[x] = fma(taut, ax, p11[x]) * (both * norm_b)
        p21[x] = fma(taut, bx, p21[x]) * (both * norm_a)


@_compiled_row
def sum_row(values):
    """The sum of int32 values, in 64 bits."""
    total = np.int64(0)
    for x in range(values.shape[0]):
        total += np.int64(values[x])
    return total


@_compiled
def iterate(level, backup, has_right, height, pitch, count, l_t, theta, taut, changes):
    """`count` iterations over the whole picture, one row apart; `changes[k]` gets the squared change of iteration k.

    `level` holds rows of the ten `PLANES`, flat; row −1 and the guards are 0. `backup` gets u and p as they were.
    """
    n = pitch - GUARD
    row_changes = np.empty(n, np.int32)
    changes[:count] = 0
    step = PLANES * pitch
    for front in range(height + count):
        for k in range(count):
            y = front - k
            u1 = (y + 1) * step + GUARD
            up_u1 = u1 - step
            u2, p11, p12, p21, p22 = u1 + pitch, u1 + 2 * pitch, u1 + 3 * pitch, u1 + 4 * pitch, u1 + 5 * pitch
            ix, iy, inverse, rho_c = u1 + 6 * pitch, u1 + 7 * pitch, u1 + 8 * pitch, u1 + 9 * pitch
            up_u2, up_p11, up_p12, up_p21, up_p22 = u2 - step, p11 - step, p12 - step, p21 - step, p22 - step
            if 0 <= y < height:
                if k == 0 and count > 1:
                    copy_row(backup[y * STATE * pitch : (y + 1) * STATE * pitch], level[u1 - GUARD :])
                update_row(
                    level[u1 : u1 + n], level[u2 : u2 + n],
                    level[p11 : p11 + n], level[p11 - 1 : p11 - 1 + n], level[p12 : p12 + n],
                    level[p21 : p21 + n], level[p21 - 1 : p21 - 1 + n], level[p22 : p22 + n],
                    level[ix : ix + n], level[iy : iy + n], level[inverse : inverse + n], level[rho_c : rho_c + n],
                    level[up_u1 : up_u1 + n], level[up_u1 + 1 : up_u1 + 1 + n],
                    level[up_u2 : up_u2 + n], level[up_u2 + 1 : up_u2 + 1 + n],
                    level[up_p11 : up_p11 + n], level[up_p12 : up_p12 + n],
                    level[up_p21 : up_p21 + n], level[up_p22 : up_p22 + n],
                    has_right, row_changes, l_t, theta, taut if y else _ZERO,  # above the first row p stays 0
                )  # fmt: skip
                changes[k] += sum_row(row_changes)
            elif y == height:
                update_last_p(
                    level[up_u1 : up_u1 + n], level[up_u1 + 1 : up_u1 + 1 + n],
                    level[up_u2 : up_u2 + n], level[up_u2 + 1 : up_u2 + 1 + n],
                    level[up_p11 : up_p11 + n], level[up_p21 : up_p21 + n], has_right, taut,
                )  # fmt: skip


@_compiled
def iterate_until(level, backup, has_right, height, pitch, most, expected, l_t, theta, taut, limit, changes):
    """Up to `most` iterations, until one's change is ≤ limit; gives how many, or −1 where none was.

    It runs ahead by as many iterations as are `expected`, and goes back if that was too far.
    """
    done = 0
    while done < most:
        count = min(expected, LONGEST_BLOCK, most - done)
        iterate(level, backup, has_right, height, pitch, count, l_t, theta, taut, changes)
        for k in range(count):
            if changes[k] <= limit:
                if k + 1 < count:
                    for y in range(height):
                        row = backup[y * STATE * pitch : (y + 1) * STATE * pitch]
                        copy_row(level[(y + 1) * PLANES * pitch : ((y + 1) * PLANES + STATE) * pitch], row)
                    iterate(level, backup, has_right, height, pitch, k + 1, l_t, theta, taut, changes)
                return done + k + 1
        done += count
        expected = 2
        if count > 1 and 0 < limit < changes[count - 1] < changes[count - 2]:
            last, before = float(changes[count - 1]), float(changes[count - 2])
            expected = 1 + int(math.log(last / limit) / math.log(before / last))
    return -1


@_compiled_row
def copy_row(target, source):
    """Copy as much of `source` as `target` holds."""
    for x in range(target.shape[0]):
        target[x] = source[x]


@_compiled
def cubic(f):
    """Weights of the four neighbours at a fraction f behind the second one (Keys 1981, A = −¾)."""
    a, before, after = np.float32(-0.75), _ONE - f, f + _ONE
    first = fma(fma(fma(a, after, np.float32(-5) * a), after, np.float32(8) * a), after, np.float32(-4) * a)
    second = fma(fma(a + np.float32(2), f, -(a + np.float32(3))) * f, f, _ONE)
    third = fma(fma(a + np.float32(2), before, -(a + np.float32(3))) * before, before, _ONE)
    return first, second, third, ((_ONE - first) - second) - third


@_compiled_row
def locate_row(u1, u2, y, height, width, first, columns, rows):
    """For each pixel of a row: the first of the 4×4 neighbours of the point it moves to, and their weights [4, W]."""
    for x in range(u1.shape[0]):
        # Beyond these positions all neighbours are zero.
        column = min(max(np.float32(np.int32(x)) + u1[x], np.float32(-3)), np.float32(width + 1))
        row = min(max(np.float32(y) + u2[x], np.float32(-3)), np.float32(height + 1))
        left, top = np.floor(column), np.floor(row)
        columns[0, x], columns[1, x], columns[2, x], columns[3, x] = cubic(column - left)
        rows[0, x], rows[1, x], rows[2, x], rows[3, x] = cubic(row - top)
        first[x] = (np.int32(top) + MARGIN - 1) * (width + 2 * MARGIN) + np.int32(left) + MARGIN - 1


@_compiled
def interpolate_row(first, columns, rows, width, image1, i1, ix, iy):
    """I1 and its gradient as `first`, `columns` and `rows` say.

    One pixel at a time, on purpose: instructions that gather from eight places take longer than 48 loads. Indices are
    unsigned, since Numba would look for negative ones.
    """
    step = np.uint64(3 * (width + 2 * MARGIN))
    for x in range(first.shape[0]):
        o = np.uint64(first[x]) * np.uint64(3)
        a, b, c = _ZERO, _ZERO, _ZERO
        for j in range(4):
            for k in range(4):
                weight = rows[j, x] * columns[k, x]
                n = o + np.uint64(3 * k)
                a = fma(weight, image1[n], a)
                b = fma(weight, image1[n + np.uint64(1)], b)
                c = fma(weight, image1[n + np.uint64(2)], c)
            o += step
        i1[x], ix[x], iy[x] = a, b, c


@_compiled_row
def linearise_row(i1, ix, iy, u1, u2, image0, inverse, rho_c):
    """1/|∇I1|² and I1 − ∇I1·u − I0, which stay the same until the next warp."""
    for x in range(image0.shape[0]):
        inverse[x] = _ONE / max(fma(ix[x], ix[x], iy[x] * iy[x]), np.float32(1e-30))
        rho_c[x] = fma(-iy[x], u2[x], fma(-ix[x], u1[x], i1[x])) - image0[x]


@_compiled
def warp(image1, image0, level, pitch):
    """Cubic warp of I1 and its gradient by u, and what stays the same until the next warp.

    Args:
        image1: what `with_gradient` made.
        image0: [H, W].
        level: rows of `PLANES`, flat; the last four get I1x, I1y, 1/|∇I1|² and I1 − ∇I1·u − I0.
        pitch: of the level.
    """
    height, width = image0.shape
    first, i1 = np.empty(width, np.int32), np.empty(width, np.float32)
    columns, rows = np.empty((4, width), np.float32), np.empty((4, width), np.float32)
    for y in range(height):
        row = level[(y + 1) * PLANES * pitch : (y + 2) * PLANES * pitch].reshape(PLANES, pitch)
        row = row[:, GUARD : GUARD + width]
        u1, u2, ix, iy, inverse, rho_c = row[0], row[1], row[6], row[7], row[8], row[9]
        locate_row(u1, u2, y, height, width, first, columns, rows)
        interpolate_row(first, columns, rows, width, image1, i1, ix, iy)
        linearise_row(i1, ix, iy, u1, u2, image0[y], inverse, rho_c)


@_compiled
def with_gradient(image):
    """I, Ix, Iy of each pixel (½ central differences, edge repeated), with zeros around: [H + 8, W + 8, 3], flat."""
    height, width = image.shape
    found = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN, 3), np.float32)
    for y in range(height):
        for x in range(width):
            pixel = found[y + MARGIN, x + MARGIN]
            pixel[0] = image[y, x]
            pixel[1] = _HALF * (image[y, min(x + 1, width - 1)] - image[y, max(x - 1, 0)])
            pixel[2] = _HALF * (image[min(y + 1, height - 1), x] - image[max(y - 1, 0), x])
    return found.ravel()


@_compiled
def resize(image, height, width, step_y, step_x, factor):
    """Bilinear, without blur, times `factor`; centres are at ½, steps are source pixels for one of the result."""
    found = np.empty((height, width), np.float32)
    lefts, columns = linear(width, step_x, image.shape[1])
    tops, rows = linear(height, step_y, image.shape[0])
    for y in range(height):
        top, bottom, low = tops[y], min(tops[y] + 1, image.shape[0] - 1), rows[y]
        for x in range(width):
            left, right, f = lefts[x], min(lefts[x] + 1, image.shape[1] - 1), columns[x]
            above = fma(f, image[top, right], (_ONE - f) * image[top, left])
            below = fma(f, image[bottom, right], (_ONE - f) * image[bottom, left])
            found[y, x] = fma(low, below, (_ONE - low) * above) * factor
    return found


@_compiled
def linear(size, step, source_size):
    """For each pixel of a resized row: the source pixel before it, and how far after that it lies."""
    first, after = np.empty(size, np.int64), np.empty(size, np.float32)
    for x in range(size):
        position = np.float32((x + 0.5) * step - 0.5)
        whole = math.floor(position)
        first[x], after[x] = whole, position - np.float32(whole)
        if whole < 0:
            first[x], after[x] = 0, _ZERO
        elif whole >= source_size - 1:
            first[x], after[x] = source_size - 1, _ZERO
    return first, after
