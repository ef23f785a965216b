"""The reference backend: OpenCV's TV-L1 on the CPU, `cv2.optflow.DualTVL1OpticalFlow`."""

import cv2
import numpy as np

from flow.parameters import TVL1Params


def solve_pair(frame0: np.ndarray, frame1: np.ndarray, params: TVL1Params, flow: np.ndarray) -> None:
    """Write the flow of two [H, W] uint8 pictures into `flow` [H, W, 2] float32."""
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
    flow[:] = solver.calc(frame0, frame1, None)
