"""TV-L1 on the CPU: OpenCV's algorithm, pair by pair; the loops are in `flow.cpu_kernels`."""

import math

import cv2
import numpy as np

from flow import cpu_kernels as kernels
from flow.parameters import TVL1Params, pyramid_sizes


def solve_pair(frame0: np.ndarray, frame1: np.ndarray, params: TVL1Params, flow: np.ndarray) -> None:
    """Write the flow of two [H, W] uint8 pictures into `flow` [H, W, 2] float32."""
    height, width = frame0.shape
    sizes = pyramid_sizes(height, width, params)
    images = [(frame0.astype(np.float32), frame1.astype(np.float32))]
    step = 1 / params.scale_step
    for size in sizes[1:]:
        images.append(tuple(kernels.resize(image, *size, step, step, np.float32(1)) for image in images[-1]))
    u = np.zeros((2, *sizes[-1]), np.float32)
    for level in reversed(range(len(sizes))):
        u = _solve_level(*images[level], u, params)
        if level:
            (height, width), (larger_height, larger_width) = sizes[level], sizes[level - 1]
            steps = height / larger_height, width / larger_width
            u = np.stack([kernels.resize(part, larger_height, larger_width, *steps, np.float32(step)) for part in u])
    flow[:] = u.transpose(1, 2, 0)


def _solve_level(image0: np.ndarray, image1: np.ndarray, u: np.ndarray, params: TVL1Params) -> np.ndarray:
    """The flow u [2, H, W] of one level of the pyramid, from what the level before found."""
    height, width = image0.shape
    row_pixels = -(-width // kernels.GUARD) * kernels.GUARD
    pitch = kernels.GUARD + row_pixels
    level = np.zeros((height + 1) * kernels.PLANES * pitch + kernels.GUARD, np.float32)
    backup = np.empty(height * kernels.STATE * pitch, np.float32)
    rows = level[kernels.PLANES * pitch : -kernels.GUARD].reshape(height, kernels.PLANES, pitch)
    pictures = rows[:, :2, kernels.GUARD : kernels.GUARD + width].transpose(1, 0, 2)
    pictures[:] = u
    has_right = np.zeros(row_pixels, np.float32)
    has_right[: width - 1] = 1
    values = np.float32(params.lambda_ * params.theta), np.float32(params.theta), np.float32(params.tau / params.theta)
    limit = math.floor(params.epsilon**2 * height * width * float(kernels.UNITS)) if params.epsilon else -1
    changes = np.zeros(kernels.LONGEST_BLOCK, np.int64)
    image1 = kernels.with_gradient(image1)
    expected = kernels.LONGEST_BLOCK
    for _ in range(params.warps):
        kernels.warp(image1, image0, level, pitch)
        for _ in range(params.outer_iterations):
            if params.median_filtering > 1:
                for picture in pictures:
                    picture[:] = cv2.medianBlur(np.ascontiguousarray(picture), params.median_filtering)
            iterations = params.inner_iterations
            arrays = (level, backup, has_right, height, pitch)
            needed = kernels.iterate_until(*arrays, iterations, expected, *values, limit, changes)
            expected = needed if needed > 0 else kernels.LONGEST_BLOCK
            if needed > 0:
                break
    return pictures.copy()
