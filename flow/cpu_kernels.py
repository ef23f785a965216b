"""The loops of TV-L1 on the CPU (`flow.cpu`), which LLVM turns into vector instructions.

The arithmetic is IEEE float32 in the order that is written here, fused where it says so; nothing is reordered or
approximated. So the same pair should give the same bits on any processor that keeps to IEEE.

What made it fast, in this order:
- Rows are functions of their own whose arguments are declared not to overlap. Without that, LLVM would have to compare
  dozens of pairs of pointers before each row, gives up, and works on one pixel at a time.
- No double precision, no 64-bit integers, one division for two, no special first and last columns.
- Rows are passed as pointers: slices of arrays cost as much as ten pixels each.
- Iterations follow each other through the picture one row apart, so that a row is in the cache for all of them.
- The solver runs ahead of the stopping rule by as many iterations as it expects to need, and goes back where
  that was too far.
- The warp loads the picture and its gradient at a neighbour at once; gathering from many places takes longer.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from flow.parameters import CHANGE_UNIT

# Guard columns at the left of each row: they hold p = 0 and keep rows on the boundaries of vectors.
GUARD = 8
# Of a pixel's change in px², so that it fits 32 bits in `CHANGE_UNIT`. With default parameters a pixel moves further in
# an iteration only where a cubic warp overshoots at the sharpest of edges.
UNITS, LARGEST_CHANGE = np.float32(1 / CHANGE_UNIT), np.float32(127)
# Iterations that follow each other through the picture: their rows fit the second-level cache at 340 columns.
LONGEST_BLOCK = 10
# Of a row: u1, u2, p11, p12, p21, p22 change with each iteration; ∂x, ∂y, 1/|∇|², ρ do not. With an illumination term
# u3, p31 and p32 come after them.
STATE, PLANES, PLANES_WITH_ILLUMINATION = 6, 10, 13
MARGIN = 4  # zeros around a picture that is warped

_ONE, _ZERO, _HALF = np.float32(1), np.float32(0), np.float32(0.5)


class _DistinctRows(Compiler):
    """Compiles a function whose rows never overlap where one of them is written."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


def _compiled(function: Any, **options: Any) -> Any:
    """Compile at the first call; the code is kept on disk where there is a place for it."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's may be written to
        return njit(nogil=True, error_model="numpy", **options)(function)


def _compiled_row(function: Any) -> Any:
    return _compiled(function, pipeline_class=_DistinctRows)


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""
    return types.float32(a, b, c), lambda _context, builder, _signature, values: builder.fma(*values)


@intrinsic
def pointer(_: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 — values come with the code
    """Where element `index` of a flat array lies."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.gep(context.make_array(signature.args[0])(context, builder, values[0]).data, [values[1]])

    return types.CPointer(array.dtype)(array, types.intp), code


@_compiled_row
def update_u(n, u1, u2, p11, p12, p12_above, p21, p22, p22_above, ix, iy, inverse, rho_c, changes, l_t, theta):
    """One iteration's u of a row of n pixels, in place.

    `…_above` are the row above, `changes` gets the squared change of u in `CHANGE_UNIT`; `l_t` and `theta` are λθ, θ.
    """
    for x in range(n):
        a, b = u1[x], u2[x]
        rho = fma(ix[x], a, fma(iy[x], b, rho_c[x]))
        step = min(max(-rho * inverse[x], -l_t), l_t)
        div_p1 = (p11[x] - p11[x - 1]) + (p12[x] - p12_above[x])
        div_p2 = (p21[x] - p21[x - 1]) + (p22[x] - p22_above[x])
        new_a = fma(theta, div_p1, fma(step, ix[x], a))
        new_b = fma(theta, div_p2, fma(step, iy[x], b))
        u1[x] = new_a
        u2[x] = new_b
        da, db = new_a - a, new_b - b
        changes[x] = np.int32(min(fma(da, da, db * db), LARGEST_CHANGE) * UNITS)


@_compiled_row
def update_p(n, u1, u1_below, u2, u2_below, p11, p12, p21, p22, has_right, taut):
    """One iteration's p of a row of n pixels, in place, from the new u.

    `…_below` are the row below; `has_right` is 1 where there is a pixel to the right, else 0; `taut` is τ/θ.
    """
    for x in range(n):
        a, b = u1[x], u2[x]
        ax, ay = (u1[x + 1] - a) * has_right[x], u1_below[x] - a
        bx, by = (u2[x + 1] - b) * has_right[x], u2_below[x] - b
        norm_a = fma(taut, np.sqrt(fma(ax, ax, ay * ay)), _ONE)
        norm_b = fma(taut, np.sqrt(fma(bx, bx, by * by)), _ONE)
        both = _ONE / (norm_a * norm_b)  # one division for two
        to_a, to_b = both * norm_b, both * norm_a
        p11[x] = fma(taut, ax, p11[x]) * to_a
        p12[x] = fma(taut, ay, p12[x]) * to_a
        p21[x] = fma(taut, bx, p21[x]) * to_b
        p22[x] = fma(taut, by, p22[x]) * to_b


@_compiled_row
def update_last_p(n, u1, u2, p11, p21, has_right, taut):
    """The p of the last row, which has no row below: p12 and p22 stay 0."""
    for x in range(n):
        ax, bx = (u1[x + 1] - u1[x]) * has_right[x], (u2[x + 1] - u2[x]) * has_right[x]
        norm_a, norm_b = fma(taut, np.sqrt(ax * ax), _ONE), fma(taut, np.sqrt(bx * bx), _ONE)
        both = _ONE / (norm_a * norm_b)
        p11[x] = fma(taut, ax, p11[x]) * (both * norm_b)
        p21[x] = fma(taut, bx, p21[x]) * (both * norm_a)


@_compiled_row
def update_illumination(
    n, u1, u2, u3, p31, p32, p32_above, ix, iy, inverse, rho_c, rho_lit, changes, gamma, l_t, theta
):  # fmt: skip
    """One iteration's u3 of a row; `rho_lit` gets what `update_u` is to take for `rho_c`, `changes` as there."""
    for x in range(n):
        light = u3[x]
        rho_lit[x] = fma(gamma, light, rho_c[x])
        rho = fma(ix[x], u1[x], fma(iy[x], u2[x], rho_lit[x]))
        step = min(max(-rho * inverse[x], -l_t), l_t)
        div_p3 = (p31[x] - p31[x - 1]) + (p32[x] - p32_above[x])
        new = fma(theta, div_p3, fma(step, gamma, light))
        u3[x] = new
        changes[x] = np.int32(min((new - light) * (new - light), LARGEST_CHANGE) * UNITS)


@_compiled_row
def update_illumination_p(n, u3, u3_below, has_below, p31, p32, has_right, taut):
    """One iteration's p of u3; `has_below` is 1, or 0 for the last row."""
    for x in range(n):
        cx, cy = (u3[x + 1] - u3[x]) * has_right[x], (u3_below[x] - u3[x]) * has_below
        to_c = _ONE / fma(taut, np.sqrt(fma(cx, cx, cy * cy)), _ONE)
        p31[x] = fma(taut, cx, p31[x]) * to_c
        p32[x] = fma(taut, cy, p32[x]) * to_c


@_compiled_row
def sum_row(n, values):
    """The sum of n int32 values, in 64 bits."""
    total = np.int64(0)
    for x in range(n):
        total += np.int64(values[x])
    return total


@_compiled_row
def copy_row(n, target, source):
    """Copy n values."""
    for x in range(n):
        target[x] = source[x]


@_compiled
def iterate(level, backup, has_right, shape, count, values, changes):
    """`count` iterations over the whole picture, one row apart; `changes[k]` gets the squared change of iteration k.

    `level` holds rows of planes, flat; row −1 and the guards are 0. `backup` gets u and p as they were. `shape` is
    (height, pitch, planes), `values` λθ, θ, τ/θ, γ.
    """
    height, pitch, planes = shape
    l_t, theta, taut, gamma = values
    n, row = pitch - GUARD, planes * pitch
    row_changes, rho_lit = np.empty(n, np.int32), np.empty(n, np.float32)
    changes[:count] = 0
    for front in range(height + count):
        for k in range(count):
            y = front - k
            here = (y + 1) * row + GUARD
            if 0 <= y < height:
                if k == 0 and count > 1:
                    save(level, backup, shape, y, True)
                u1, u2 = pointer(level, here), pointer(level, here + pitch)
                ix, iy = pointer(level, here + 6 * pitch), pointer(level, here + 7 * pitch)
                inverse, rho_c = pointer(level, here + 8 * pitch), pointer(level, here + 9 * pitch)
                if planes > PLANES:
                    p32 = here + 12 * pitch
                    update_illumination(
                        n, u1, u2, pointer(level, here + 10 * pitch), pointer(level, here + 11 * pitch),
                        pointer(level, p32), pointer(level, p32 - row), ix, iy, inverse, rho_c, pointer(rho_lit, 0),
                        pointer(row_changes, 0), gamma, l_t, theta,
                    )  # fmt: skip
                    changes[k] += sum_row(n, pointer(row_changes, 0))
                    rho_c = pointer(rho_lit, 0)
                p12, p22 = here + 3 * pitch, here + 5 * pitch
                update_u(
                    n, u1, u2, pointer(level, here + 2 * pitch), pointer(level, p12), pointer(level, p12 - row),
                    pointer(level, here + 4 * pitch), pointer(level, p22), pointer(level, p22 - row),
                    ix, iy, inverse, rho_c, pointer(row_changes, 0), l_t, theta,
                )  # fmt: skip
                changes[k] += sum_row(n, pointer(row_changes, 0))
            if 0 < y <= height:
                update_row_above(level, has_right, shape, y, taut)


@_compiled
def update_row_above(level, has_right, shape, y, taut):
    """One iteration's p of row y − 1, which needs the new u of row y."""
    height, pitch, planes = shape
    row = planes * pitch
    above = y * row + GUARD
    n, right = pitch - GUARD, pointer(has_right, 0)
    u1, u2 = pointer(level, above), pointer(level, above + pitch)
    p11, p21 = pointer(level, above + 2 * pitch), pointer(level, above + 4 * pitch)
    if y < height:
        p12, p22 = pointer(level, above + 3 * pitch), pointer(level, above + 5 * pitch)
        below1, below2 = pointer(level, above + row), pointer(level, above + row + pitch)
        update_p(n, u1, below1, u2, below2, p11, p12, p21, p22, right, taut)
    else:
        update_last_p(n, u1, u2, p11, p21, right, taut)
    if planes > PLANES:
        u3 = above + 10 * pitch
        below3 = pointer(level, u3 + row if y < height else u3)
        p31, p32 = pointer(level, u3 + pitch), pointer(level, u3 + 2 * pitch)
        update_illumination_p(n, pointer(level, u3), below3, _ONE if y < height else _ZERO, p31, p32, right, taut)


@_compiled
def save(level, backup, shape, y, forward):
    """Copy u and p of row y from the level to the backup, or back if not `forward`."""
    _, pitch, planes = shape
    here, there = (y + 1) * planes * pitch, y * planes * pitch
    for plane in range(planes):
        if plane < STATE or plane >= PLANES:
            one, other = pointer(level, here + plane * pitch), pointer(backup, there + plane * pitch)
            if forward:
                copy_row(pitch, other, one)
            else:
                copy_row(pitch, one, other)


@_compiled
def iterate_until(level, backup, has_right, shape, most, expected, values, limit, changes):
    """Up to `most` iterations, until one's change is ≤ limit; gives how many, or −1 where none was.

    It runs ahead by as many iterations as are `expected`, and goes back if that was too far.
    """
    done = 0
    while done < most:
        count = min(expected, LONGEST_BLOCK, most - done)
        iterate(level, backup, has_right, shape, count, values, changes)
        for k in range(count):
            if changes[k] <= limit:
                if k + 1 < count:
                    for y in range(shape[0]):
                        save(level, backup, shape, y, False)
                    iterate(level, backup, has_right, shape, k + 1, values, changes)
                return done + k + 1
        done += count
        expected = 2 if limit >= 0 else LONGEST_BLOCK
        if count > 1 and 0 < limit < changes[count - 1] < changes[count - 2]:
            last, before = float(changes[count - 1]), float(changes[count - 2])
            expected = 1 + int(math.log(last / limit) / math.log(before / last))
    return -1


@_compiled
def cubic(f):
    """Weights of the four neighbours at a fraction f behind the second one (Keys 1981, A = −¾)."""
    a, before, after = np.float32(-0.75), _ONE - f, f + _ONE
    first = fma(fma(fma(a, after, np.float32(-5) * a), after, np.float32(8) * a), after, np.float32(-4) * a)
    second = fma(fma(a + np.float32(2), f, -(a + np.float32(3))) * f, f, _ONE)
    third = fma(fma(a + np.float32(2), before, -(a + np.float32(3))) * before, before, _ONE)
    return first, second, third, ((_ONE - first) - second) - third


@_compiled_row
def locate_row(n, u1, u2, y, height, width, first, columns, rows):
    """For each pixel of a row: the first of the 4×4 neighbours of the point it moves to, and their weights [4, n]."""
    for x in range(n):
        # Beyond these positions all neighbours are zero. What is not a number is not above them either.
        column, row = np.float32(np.int32(x)) + u1[x], np.float32(y) + u2[x]
        column = min(column if column > np.float32(-3) else np.float32(-3), np.float32(width + 1))
        row = min(row if row > np.float32(-3) else np.float32(-3), np.float32(height + 1))
        left, top = np.floor(column), np.floor(row)
        columns[x], columns[n + x], columns[2 * n + x], columns[3 * n + x] = cubic(column - left)
        rows[x], rows[n + x], rows[2 * n + x], rows[3 * n + x] = cubic(row - top)
        first[x] = (np.int32(top) + MARGIN - 1) * (width + 2 * MARGIN) + np.int32(left) + MARGIN - 1


@intrinsic
def interpolate(_: Any, image: Any, first: Any, step: Any, columns: Any, rows: Any) -> Any:  # noqa: ARG001
    """Of the 4×4 points from `first` on, four values each, `step` values from row to row: their weighted sums."""
    weights = types.UniTuple(types.float32, 4)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        image, first, step, columns, rows = values
        data = context.make_array(signature.args[0])(context, builder, image).data
        index, four = ir.IntType(32), ir.VectorType(ir.FloatType(), 4)
        undefined, zeros = ir.Constant(four, ir.Undefined), ir.Constant(ir.VectorType(index, 4), [0] * 4)
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(four, [four] * 3), "llvm.fma.v4f32")

        def repeated(weight: Any) -> Any:
            return builder.shuffle_vector(builder.insert_element(undefined, weight, index(0)), undefined, zeros)

        across = [repeated(builder.extract_value(columns, k)) for k in range(4)]
        total = ir.Constant(four, [0.0] * 4)
        for j in range(4):
            down = repeated(builder.extract_value(rows, j))
            for k in range(4):
                place = builder.gep(data, [builder.add(first, ir.Constant(first.type, 4 * k))])
                point = builder.load(builder.bitcast(place, four.as_pointer()), align=4)
                total = builder.call(fused, [builder.fmul(down, across[k]), point, total])
            first = builder.add(first, step)
        sums = [builder.extract_element(total, index(k)) for k in range(3)]
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(types.float32, 3)(image, types.intp, types.intp, weights, weights), code


@_compiled
def interpolate_row(first, columns, rows, width, image1, i1, ix, iy):
    """I1 and its gradient as `first`, `columns` and `rows` say."""
    step = 4 * (width + 2 * MARGIN)
    for x in range(width):
        across = columns[0, x], columns[1, x], columns[2, x], columns[3, x]
        down = rows[0, x], rows[1, x], rows[2, x], rows[3, x]
        i1[x], ix[x], iy[x] = interpolate(image1, 4 * np.intp(first[x]), step, across, down)


@_compiled_row
def linearise_row(n, i1, ix, iy, u1, u2, image0, inverse, rho_c):
    """1/|∇I1|² and I1 − ∇I1·u − I0, which stay the same until the next warp."""
    for x in range(n):
        inverse[x] = _ONE / max(fma(ix[x], ix[x], iy[x] * iy[x]), np.float32(1e-30))
        rho_c[x] = fma(-iy[x], u2[x], fma(-ix[x], u1[x], i1[x])) - image0[x]


@_compiled
def warp(image1, image0, level, shape):
    """Cubic warp of I1 and its gradient by u, and what stays the same until the next warp.

    Args:
        image1: what `with_gradient` made.
        image0: [H, W].
        level: rows of planes, flat; four of them get I1x, I1y, 1/|∇I1|² and I1 − ∇I1·u − I0.
        shape: (height, pitch, planes) of the level.
    """
    _, pitch, planes = shape
    height, width = image0.shape
    first, i1 = np.empty(width, np.int32), np.empty(width, np.float32)
    columns, rows = np.empty((4, width), np.float32), np.empty((4, width), np.float32)
    flat0, flat_columns, flat_rows = image0.ravel(), columns.ravel(), rows.ravel()
    for y in range(height):
        here = (y + 1) * planes * pitch + GUARD
        u1, u2 = pointer(level, here), pointer(level, here + pitch)
        locate_row(width, u1, u2, y, height, width, pointer(first, 0), pointer(flat_columns, 0), pointer(flat_rows, 0))
        ix, iy = here + 6 * pitch, here + 7 * pitch
        interpolate_row(first, columns, rows, width, image1, i1, level[ix : ix + width], level[iy : iy + width])
        linearise_row(
            width, pointer(i1, 0), pointer(level, ix), pointer(level, iy), u1, u2, pointer(flat0, y * width),
            pointer(level, here + 8 * pitch), pointer(level, here + 9 * pitch),
        )  # fmt: skip


@_compiled
def with_gradient(image):
    """I, Ix, Iy of each pixel (½ central differences, edge repeated), with zeros around: [H + 8, W + 8, 4], flat."""
    height, width = image.shape
    found = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN, 4), np.float32)
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
