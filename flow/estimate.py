"""TV-L1 optical flow: the one front door to every backend (Zach, Pock, Bischof 2007, in OpenCV's discretisation)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from flow import cpu, opencv
from flow.parameters import MINIMUM_SIDE_PIXELS, TVL1Params

Solver = Callable[[np.ndarray, np.ndarray, TVL1Params, np.ndarray], None]
SOLVERS: dict[str, Solver] = {"cpu": cpu.solve_pair, "opencv": opencv.solve_pair}


def fastest_backend(params: TVL1Params = TVL1Params()) -> str:
    """What `backend="auto"` takes here: "cpu", or "opencv" where the illumination term is asked for (gamma ≠ 0)."""
    return "opencv" if params.gamma else "cpu"


def tvl1(
    frames: np.ndarray, params: TVL1Params = TVL1Params(), *, backend: str = "auto", threads: int = 1
) -> np.ndarray:
    """TV-L1 flow between the consecutive frames of a clip.

    A pair's result depends on the pair, the parameters and the backend alone.

    Args:
        frames: [T, H, W] uint8 grey pictures, T ≥ 2, sides of at least 16 pixels.
        params: parameters of the method.
        backend: "cpu" is ours; "opencv" is `cv2.optflow.DualTVL1OpticalFlow`, the reference, which ours follows to
            some hundredths of a pixel; "auto" is the fastest of them.
        threads: pairs computed at a time.

    Returns:
        [T − 1, H, W, 2] float32: the motion (x, y) in pixels from frame i to frame i + 1.

    Raises:
        ValueError: another shape, dtype or backend, fewer than two frames, pictures that are too small, or parameters
            that the backend does not know.
    """
    chosen = fastest_backend(params) if backend == "auto" else backend
    if chosen not in SOLVERS:
        raise ValueError(f"backend {backend!r} is unknown; there are 'auto', {', '.join(map(repr, SOLVERS))}")
    if chosen == "cpu" and params.gamma:
        raise ValueError(f"gamma {params.gamma:g}: the backend 'cpu' has no illumination term; 'opencv' has")
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W] uint8 grey, not {frames.dtype} {list(frames.shape)}")
    count, height, width = frames.shape
    if count < 2:
        raise ValueError(f"{count} frame: flow needs two or more")
    if min(height, width) < MINIMUM_SIDE_PIXELS:
        raise ValueError(f"frames of {width}x{height}: flow needs sides of at least {MINIMUM_SIDE_PIXELS} pixels")
    # One OpenCV thread a pair: threads over pairs scale better than OpenCV's over rows, and workers must not multiply.
    cv2.setNumThreads(1)
    flow = np.empty((count - 1, height, width, 2), np.float32)

    def solve(i: int) -> None:
        SOLVERS[chosen](frames[i], frames[i + 1], params, flow[i])

    with ThreadPoolExecutor(max(1, min(threads, count - 1))) as pool:
        for _ in pool.map(solve, range(count - 1)):
            pass  # raises what a solver raised
    return flow
