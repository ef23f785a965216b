"""TV-L1 optical flow: the one front door to every backend (Zach, Pock, Bischof 2007, in OpenCV's discretisation)."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flow.opencv import solve_pairs
from flow.parameters import TVL1Params

# Below this size no pyramid level is left for OpenCV's solver to start from.
MINIMUM_SIDE_PIXELS = 16


def tvl1(
    frames: np.ndarray, params: TVL1Params = TVL1Params(), *, backend: str = "opencv", threads: int = 1
) -> np.ndarray:
    """TV-L1 flow between the consecutive frames of a clip.

    Args:
        frames: [T, H, W] uint8 grey pictures, T ≥ 2, sides of at least 16 pixels.
        params: parameters of the method.
        backend: "opencv" is `cv2.optflow.DualTVL1OpticalFlow`, the reference.
        threads: pairs computed at a time; the result does not depend on it.

    Returns:
        [T − 1, H, W, 2] float32: the motion (x, y) in pixels from frame i to frame i + 1.

    Raises:
        ValueError: another shape, dtype or backend, fewer than two frames, or pictures that are too small.
    """
    if backend != "opencv":
        raise ValueError(f"backend {backend!r} is unknown; there is 'opencv'")
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W] uint8 grey, not {frames.dtype} {list(frames.shape)}")
    count, height, width = frames.shape
    if count < 2:
        raise ValueError(f"{count} frame: flow needs two or more")
    if min(height, width) < MINIMUM_SIDE_PIXELS:
        raise ValueError(f"frames of {width}x{height}: flow needs sides of at least {MINIMUM_SIDE_PIXELS} pixels")
    flow = np.empty((count - 1, height, width, 2), np.float32)
    chunks = np.array_split(np.arange(count - 1), min(threads, count - 1))
    if len(chunks) == 1:
        solve_pairs(frames, chunks[0], params, flow)
    else:
        with ThreadPoolExecutor(len(chunks)) as pool:
            for done in [pool.submit(solve_pairs, frames, chunk, params, flow) for chunk in chunks]:
                done.result()
    return flow
