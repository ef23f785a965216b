"""The reference backends: OpenCV's TV-L1, on the CPU and, where it was built for that, on a GPU."""

from typing import Any

import cv2
import numpy as np

from flow.parameters import TVL1Params

cuda_cv2: Any = cv2  # pip's OpenCV, whose types are known, lacks the names of one with CUDA


def solve_pair(
    frame0: np.ndarray, frame1: np.ndarray, params: TVL1Params, flow: np.ndarray, initial: np.ndarray | None
) -> None:
    """Write the flow of two [H, W] uint8 pictures into `flow` [H, W, 2] float32; `initial` is a flow to begin with."""
    # A solver of its own: OpenCV's object is not thread-safe and keeps a lowered number of scales after a small image.
    solver = cv2.optflow.DualTVL1OpticalFlow.create(
        tau=params.tau,
        lambda_=params.lambda_,
        theta=params.theta,
        nscales=params.scales,
        warps=params.warps,
        epsilon=params.epsilon,
        innnerIterations=params.inner_iterations,
        outerIterations=params.outer_iterations,
        scaleStep=params.scale_step,
        gamma=params.gamma,
        medianFiltering=params.median_filtering,
        useInitialFlow=initial is not None,
    )
    flow[:] = solver.calc(frame0, frame1, None if initial is None else initial.copy())


def solve_pair_on_gpu(
    frame0: np.ndarray, frame1: np.ndarray, params: TVL1Params, flow: np.ndarray, initial: np.ndarray | None
) -> None:
    """Like `solve_pair`; there is no median, and outer × inner iterations follow each other."""
    numbers = params.tau, params.lambda_, params.theta, params.scales, params.warps, params.epsilon
    iterations = params.outer_iterations * params.inner_iterations
    more = iterations, params.scale_step, params.gamma, initial is not None
    solver = cuda_cv2.cuda_OpticalFlowDual_TVL1.create(*numbers, *more)
    pictures = [cuda_cv2.cuda_GpuMat(np.ascontiguousarray(frame)) for frame in (frame0, frame1)]
    begin = None if initial is None else cuda_cv2.cuda_GpuMat(np.ascontiguousarray(initial))
    flow[:] = solver.calc(*pictures, begin).download()
