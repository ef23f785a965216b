"""TV-L1 optical flow: the one front door to every backend (Zach, Pock, Bischof 2007, in OpenCV's discretisation)."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from flow import cpu, opencv
from flow.parameters import MINIMUM_SIDE_PIXELS, TVL1Params

CUDA = "cuda"
PairSolver = Callable[[np.ndarray, np.ndarray, TVL1Params, np.ndarray], None]
PAIR_SOLVERS: dict[str, PairSolver] = {"cpu": cpu.solve_pair, "opencv": opencv.solve_pair}
BACKENDS = (CUDA, *PAIR_SOLVERS)

_gpu = threading.Lock()  # a call fills the memory that is free, so threads take turns


def fastest_backend(params: TVL1Params = TVL1Params()) -> str:
    """What `backend="auto"` takes: "cpu", or "opencv" for an illumination term (gamma ≠ 0).

    Never "cuda" by itself as long as that has not been seen to run on a GPU.
    """
    return "opencv" if params.gamma else "cpu"


def tvl1(
    frames: np.ndarray,
    params: TVL1Params = TVL1Params(),
    *,
    backend: str = "auto",
    device: str = "cuda",
    threads: int = 1,
) -> np.ndarray:
    """TV-L1 flow between the consecutive frames of a clip.

    A pair's result depends on the pair, the parameters and the backend alone; "cuda" and "cpu" give the same.

    Args:
        frames: [T, H, W] uint8 grey pictures, T ≥ 2, sides of at least 16 pixels.
        params: parameters of the method.
        backend: "cuda" and "cpu" are ours; "opencv" is `cv2.optflow.DualTVL1OpticalFlow`, the reference, which ours
            follow to some hundredths of a pixel; "auto" see `fastest_backend`.
        device: where "cuda" works, as torch names it.
        threads: pairs computed at a time on the CPU.

    Returns:
        [T − 1, H, W, 2] float32: the motion (x, y) in pixels from frame i to frame i + 1.

    Raises:
        ValueError: another shape, dtype or backend, fewer than two frames, pictures that are too small, or parameters
            that the backend does not know.
        ImportError: "cuda" without torch or Triton.
    """
    chosen = fastest_backend(params) if backend == "auto" else backend
    if chosen not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; there are 'auto', {', '.join(map(repr, BACKENDS))}")
    if chosen != "opencv" and params.gamma:
        raise ValueError(f"gamma {params.gamma:g}: the backend {chosen!r} has no illumination term; 'opencv' has")
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W] uint8 grey, not {frames.dtype} {list(frames.shape)}")
    count, height, width = frames.shape
    if count < 2:
        raise ValueError(f"{count} frame: flow needs two or more")
    if min(height, width) < MINIMUM_SIDE_PIXELS:
        raise ValueError(f"frames of {width}x{height}: flow needs sides of at least {MINIMUM_SIDE_PIXELS} pixels")
    if chosen == CUDA:
        return _on_gpu(frames, params, device)
    return _on_cpu(frames, params, PAIR_SOLVERS[chosen], threads)


def _on_cpu(frames: np.ndarray, params: TVL1Params, solve_pair: PairSolver, threads: int) -> np.ndarray:
    pairs = len(frames) - 1
    # One OpenCV thread a pair: threads over pairs scale better than OpenCV's over rows, and workers must not multiply.
    cv2.setNumThreads(1)
    flow = np.empty((pairs, *frames.shape[1:], 2), np.float32)

    def solve(i: int) -> None:
        solve_pair(frames[i], frames[i + 1], params, flow[i])

    with ThreadPoolExecutor(max(1, min(threads, pairs))) as pool:
        for _ in pool.map(solve, range(pairs)):
            pass  # raises what a solver raised
    return flow


def _on_gpu(frames: np.ndarray, params: TVL1Params, device: str) -> np.ndarray:
    import torch  # seconds that users of the CPU need not wait

    from flow.cuda import solve_pairs

    with _gpu:
        on_device = torch.from_numpy(frames).to(device)
        return solve_pairs(on_device[:-1], on_device[1:], params).cpu().numpy()
