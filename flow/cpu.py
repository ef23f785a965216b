"""TV-L1 on the CPU: OpenCV's algorithm, pair by pair; the loops are in `flow.cpu_kernels`."""

import cv2
import numpy as np

from flow import cpu_kernels as kernels
from flow.parameters import TVL1Params, change_limit, pyramid_sizes


def solve_pair(
    frame0: np.ndarray, frame1: np.ndarray, params: TVL1Params, flow: np.ndarray, initial: np.ndarray | None
) -> None:
    """Write the flow of two [H, W] uint8 pictures into `flow` [H, W, 2] float32; `initial` is a flow to begin with."""
    height, width = frame0.shape
    sizes = pyramid_sizes(height, width, params)
    images: list[tuple[np.ndarray, ...]] = [(frame0.astype(np.float32), frame1.astype(np.float32))]
    step = 1 / params.scale_step
    for size in sizes[1:]:
        images.append(tuple(_resized(image, size, step, step, 1.0) for image in images[-1]))
    u = np.zeros((3 if params.gamma else 2, *sizes[-1]), np.float32)
    if initial is not None:
        parts = [np.ascontiguousarray(initial[..., component], np.float32) for component in (0, 1)]
        for size in sizes[1:]:
            parts = [_resized(part, size, step, step, params.scale_step) for part in parts]
        u[:2] = parts
    for level in reversed(range(len(sizes))):
        image0, image1 = images[level]
        u = _solve_level(image0, image1, u, params)
        if level:
            (height, width), larger = sizes[level], sizes[level - 1]
            steps = height / larger[0], width / larger[1]
            factors = (step, step, 1.0)[: len(u)]  # u3 is no motion
            u = np.stack([_resized(part, larger, *steps, factor) for part, factor in zip(u, factors, strict=True)])
    flow[:] = u[:2].transpose(1, 2, 0)


def _solve_level(image0: np.ndarray, image1: np.ndarray, u: np.ndarray, params: TVL1Params) -> np.ndarray:
    """The flow u [2, H, W] of one level of the pyramid, from what the level before found; u3 too if there is one."""
    height, width = image0.shape
    row_pixels = -(-width // kernels.GUARD) * kernels.GUARD
    pitch = kernels.GUARD + row_pixels
    planes = kernels.PLANES_WITH_ILLUMINATION if params.gamma else kernels.PLANES
    shape = height, pitch, planes
    level = _aligned_zeros((height + 1) * planes * pitch + kernels.GUARD)
    backup = _aligned_zeros(height * planes * pitch)
    rows = level[planes * pitch : -kernels.GUARD].reshape(height, planes, pitch)
    pictures = [rows[:, plane, kernels.GUARD : kernels.GUARD + width] for plane in (0, 1, kernels.PLANES)[: len(u)]]
    for picture, part in zip(pictures, u, strict=True):
        picture[:] = part
    has_right = _aligned_zeros(row_pixels)
    has_right[: width - 1] = 1
    numbers = params.lambda_ * params.theta, params.theta, params.tau / params.theta, params.gamma
    values = tuple(map(np.float32, numbers))
    limit = change_limit(params, height, width)
    changes = np.zeros(kernels.LONGEST_BLOCK, np.int64)
    image1 = kernels.with_gradient(image1)
    expected = kernels.LONGEST_BLOCK
    for _ in range(params.warps):
        kernels.warp(image1, image0, level, shape)
        for _ in range(params.outer_iterations):
            if params.median_filtering > 1:
                for picture in pictures[:2]:
                    cv2.medianBlur(picture, params.median_filtering, dst=picture)
            arrays = level, backup, has_right, shape
            needed = kernels.iterate_until(*arrays, params.inner_iterations, expected, values, limit, changes)
            expected = needed if needed > 0 else kernels.LONGEST_BLOCK
            if needed > 0:
                break
    return np.stack(pictures)


def _resized(image: np.ndarray, size: tuple[int, int], step_y: float, step_x: float, factor: float) -> np.ndarray:
    """`flow.cpu_kernels.resize`; a picture that has the size already is not resampled, as in OpenCV."""
    if image.shape == size:
        return image * np.float32(factor)
    return np.asarray(kernels.resize(image, *size, step_y, step_x, np.float32(factor)))


def _aligned_zeros(count: int) -> np.ndarray:
    """Float32 zeros that begin at a boundary of vectors."""
    zeros = np.zeros(count + kernels.GUARD, np.float32)
    skipped = -(zeros.ctypes.data // zeros.itemsize) % kernels.GUARD
    return zeros[skipped : skipped + count]
