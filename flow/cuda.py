"""TV-L1 on a GPU: the same bits as `flow.cpu`, for all pairs of a clip at once, in Triton.

What makes it fast:
- All pairs of a batch go through each launch together; within a level of the pyramid the host waits for the device
  once an outer iteration at most.
- Each pair has its own flags on the device. A pair that has stopped costs programs that return at once, and from the
  next outer iteration on nothing.
- u and p exist twice; a launch reads one copy and writes the other. So several iterations can be done in one launch,
  within tiles that overlap by one pixel an iteration: if the rule would have stopped a pair halfway, then the copy that
  was read is still whole, and the next launch does so many iterations again.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from flow import cpu_kernels
from flow import cuda_kernels as kernels
from flow.parameters import TVL1Params, change_limit, pyramid_sizes

# Above this, pictures times two would not fit a grid's second dimension.
LARGEST_BATCH = 32767
# What a pair takes for each channel of u: with two, 25 float32 planes of the largest level's size are alive at once,
# and memory lies between arrays.
BYTES_PER_PIXEL = 64


@dataclass(frozen=True)
class Tiling:
    """How the iterations are cut into launches.

    With `iterations` = 1, each program updates a tile of rows × columns pixels. With more, a tile includes a margin of
    as many pixels on each side, which is computed in vain. Rows and columns are powers of two.

    Raises:
        ValueError: tiles that are nothing but margin.
    """

    iterations: int = 1
    rows: int = 8
    columns: int = 64
    warps: int = 4

    def __post_init__(self) -> None:
        if self.iterations < 1 or min(self.rows, self.columns) <= 2 * self.margin:
            raise ValueError(f"{self}: nothing is left of a tile without its margin")

    @property
    def margin(self) -> int:
        """Pixels of a tile's border that are not written."""
        return self.iterations if self.iterations > 1 else 0


# Of launches that do one thing with each pixel, and of iterations: four of them cost a third of a tile for its margin,
# and eight pixels a thread are what fits into registers.
PIXELWISE, DEFAULT = Tiling(), Tiling(4, 32, 64, 8)


def batch_size(free_bytes: int, height: int, width: int, channels: int) -> int:
    """How many pairs of pictures of this size fit into four fifths of the memory that is free, but at least 1."""
    return min(max(free_bytes * 4 // 5 // (BYTES_PER_PIXEL * channels * height * width), 1), LARGEST_BATCH)


def solve_pairs(
    first: torch.Tensor,
    second: torch.Tensor,
    params: TVL1Params,
    initial: torch.Tensor | None = None,
    *,
    batch: int | None = None,
    tiling: Tiling = DEFAULT,
) -> torch.Tensor:
    """Flow from each picture of `first` to the one of `second`: the bits of `flow.cpu.solve_pair`.

    For the pairs of a clip [T, H, W], these are `frames[:-1]` and `frames[1:]`. No pair's flow depends on others.

    Args:
        first: [N, H, W] uint8, on the device that is to do the work.
        second: like `first`.
        params: of TV-L1.
        initial: flow to begin with, [N, H, W, 2] float32; default: none.
        batch: pairs at a time; default: as many as fit into the device's memory.
        tiling: changes the speed, never the result.

    Returns:
        [N, H, W, 2] float32, on the same device.
    """
    if first.shape != second.shape or first.ndim != 3 or not first.dtype == second.dtype == torch.uint8:
        said = f"{list(first.shape)} {first.dtype} and {list(second.shape)} {second.dtype}"
        raise ValueError(f"the pictures of pairs must be two tensors [N, H, W] uint8 of one size, not {said}")
    pairs, height, width = first.shape
    flow = torch.empty(pairs, height, width, 2, device=first.device)
    on_device = first.device.type == "cuda"
    with torch.cuda.device(first.device) if on_device else nullcontext():
        if batch is None:
            batch = batch_size(_free_bytes(), height, width, _channels(params)) if on_device else LARGEST_BATCH
        for start in range(0, pairs, batch):
            part = slice(start, start + batch)
            begin = None if initial is None else initial[part]
            flow[part] = _solve_batch(first[part].float(), second[part].float(), params, begin, tiling)
    return flow


def _channels(params: TVL1Params) -> int:
    """Of u: the motion, and the illumination if it has a weight."""
    return 3 if params.gamma else 2


def _free_bytes() -> int:
    """What the device has free, and what torch holds of it without using it."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _solve_batch(
    first: torch.Tensor, second: torch.Tensor, params: TVL1Params, initial: torch.Tensor | None, tiling: Tiling
) -> torch.Tensor:
    """Flow [N, H, W, 2] of float32 pictures [N, H, W]."""
    pairs, height, width = first.shape
    sizes = pyramid_sizes(height, width, params)
    images = [(first.contiguous(), second.contiguous())]
    step = 1 / params.scale_step
    for size in sizes[1:]:
        image0, image1 = (_resize(image, size, (step, step), 1.0) for image in images[-1])
        images.append((image0, image1))
    u = torch.zeros(pairs, _channels(params), *sizes[-1], device=first.device)
    if initial is not None:
        part = initial.permute(0, 3, 1, 2).flatten(0, 1)
        for size in sizes[1:]:
            part = _resize(part, size, (step, step), float(np.float32(params.scale_step)))
        u[:, :2] = part.reshape(pairs, 2, *sizes[-1])
    for level in reversed(range(len(sizes))):
        u = _solve_level(*images.pop(), u, params, tiling)
        if level:
            (height, width), larger = sizes[level], sizes[level - 1]
            steps = height / larger[0], width / larger[1]
            motion = _resize(u[:, :2].flatten(0, 1), larger, steps, float(np.float32(step)))
            light = [_resize(part, larger, steps, 1.0)[:, None] for part in u[:, 2:].unbind(1)]
            u = torch.cat([motion.reshape(pairs, 2, *larger), *light], 1)
    return u[:, :2].permute(0, 2, 3, 1)


def _solve_level(
    image0: torch.Tensor, image1: torch.Tensor, u: torch.Tensor, params: TVL1Params, tiling: Tiling
) -> torch.Tensor:
    """The u [N, channels, H, W] of one level of the pyramid, from what the one before found; pictures are [N, H, W]."""
    (pairs, height, width), channels = image0.shape, u.shape[1]
    empty, size, options = image0.new_empty, (pairs, height, width), _launch_options()
    us, ps = empty(2, pairs, channels, height, width), empty(2, pairs, 2 * channels, height, width)
    us[0], ps[0] = u, 0
    constants, with_gradient = empty(pairs, 4, height, width), empty(pairs, 3, height, width)
    flags = torch.zeros(pairs, kernels.FLAGS.value, dtype=torch.int32, device=image0.device)
    everyone = torch.arange(pairs, dtype=torch.int32, device=image0.device)
    grid = _grid(height, width, pairs)
    kernels.gradient[grid](image1, with_gradient, height, width, **options)
    for _ in range(params.warps):
        kernels.warp[grid](image0, with_gradient, us, constants, flags, *size, channels=channels, **options)
        flags[:, kernels.ACTIVE.value], chosen = 1, everyone
        for outer in range(params.outer_iterations):
            if outer:
                chosen = flags[:, kernels.ACTIVE.value].nonzero().flatten().int()
            if not len(chosen):
                break
            if params.median_filtering > 1:
                kernels.median[(grid[0], len(chosen), channels)](
                    us, flags, chosen, *size, side=params.median_filtering, channels=channels, **options
                )
            _iterate(us, ps, constants, flags, chosen, params, tiling)
    return us[flags[:, kernels.AT_U.value].long(), everyone.long()]


def _iterate(
    us: torch.Tensor,
    ps: torch.Tensor,
    constants: torch.Tensor,
    flags: torch.Tensor,
    chosen: torch.Tensor,
    params: TVL1Params,
    tiling: Tiling,
) -> None:
    """The iterations of the chosen pairs between two medians: as many launches, whatever they find."""
    _, pairs, channels, height, width = us.shape
    whole, rest = divmod(params.inner_iterations, tiling.iterations)
    counts = [tiling.iterations] * whole + [rest] * (rest > 0)
    if tiling.iterations > 1:
        counts.append(0)  # one more launch for pairs that have to go back from the last one
    limit = change_limit(params, height, width)
    values = params.lambda_ * params.theta, params.theta, params.tau / params.theta, params.gamma
    numbers = pairs, height, width, *(float(np.float32(value)) for value in values)
    length = triton.next_power_of_2(tiling.iterations)
    changes = torch.zeros(len(counts), pairs, length, dtype=torch.int64, device=us.device)
    grid = _grid(height, width, len(chosen), tiling)
    options = {"length": length, "channels": channels, **_launch_options(tiling)}
    kernels.begin[(len(chosen),)](flags, chosen, counts[0], int(params.median_filtering > 1), num_warps=1)
    for change, following in zip(changes, [*counts[1:], 0], strict=True):
        if tiling.iterations > 1:
            kernels.iterate[grid](us, ps, constants, flags, chosen, change, *numbers, margin=tiling.margin, **options)
        else:
            kernels.iterate_once[grid](us, ps, constants, flags, chosen, change, *numbers, **options)
        kernels.decide[(len(chosen),)](flags, chosen, change, limit, following, length=length, num_warps=1)


def _resize(pictures: torch.Tensor, size: tuple[int, int], steps: tuple[float, float], factor: float) -> torch.Tensor:
    """`flow.cpu_kernels.resize` of pictures [N, H, W]."""
    (number, source_height, source_width), device = pictures.shape, pictures.device
    (height, width), (step_y, step_x) = size, steps
    if size == (source_height, source_width):
        return pictures * factor
    lefts, after_lefts = (
        torch.from_numpy(table).to(device) for table in cpu_kernels.linear(width, step_x, source_width)
    )
    tops, after_tops = (
        torch.from_numpy(table).to(device) for table in cpu_kernels.linear(height, step_y, source_height)
    )
    found = pictures.new_empty(number, height, width)
    kernels.resize[_grid(height, width, number)](
        pictures.contiguous(), found, lefts.int(), after_lefts, tops.int(), after_tops,
        source_height, source_width, height, width, factor, **_launch_options(),
    )  # fmt: skip
    return found


def _grid(height: int, width: int, pictures: int, tiling: Tiling | None = None) -> tuple[int, int]:
    """One program for each tile of each picture."""
    tiling = tiling or PIXELWISE
    inner_rows, inner_columns = tiling.rows - 2 * tiling.margin, tiling.columns - 2 * tiling.margin
    return triton.cdiv(height, inner_rows) * triton.cdiv(width, inner_columns), pictures


def _launch_options(tiling: Tiling | None = None) -> dict[str, Any]:
    tiling = tiling or PIXELWISE
    # With fusion, ptxas would make one instruction of a product and a sum, and round once where flow.cpu rounds twice.
    return {"rows": tiling.rows, "columns": tiling.columns, "num_warps": tiling.warps, "enable_fp_fusion": False}
