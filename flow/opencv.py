"""The reference backend: OpenCV's TV-L1 on the CPU, `cv2.optflow.DualTVL1OpticalFlow`."""

import cv2
import numpy as np

from flow.parameters import TVL1Params


def solve_pairs(frames: np.ndarray, pairs: np.ndarray, params: TVL1Params, flow: np.ndarray) -> None:
    """Write the flow of `pairs` (indices of first frames) of `frames` [T, H, W] uint8 into `flow` [T − 1, H, W, 2]."""
    # One OpenCV thread a pair: threads over pairs scale better than OpenCV's over rows, and workers must not multiply.
    cv2.setNumThreads(1)
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
        useInitialFlow=False,
    )
    for i in pairs:
        flow[i] = solver.calc(frames[i], frames[i + 1], None)
