"""TV-L1 optical flow: the one front door to every backend (Zach, Pock, Bischof 2007, in OpenCV's discretisation)."""

import ctypes
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import cv2
import numpy as np

from flow import cpu, opencv
from flow.parameters import MINIMUM_SIDE_PIXELS, TVL1Params

CUDA, OPENCV_CUDA = "cuda", "opencv-cuda"
PairSolver = Callable[[np.ndarray, np.ndarray, TVL1Params, np.ndarray, np.ndarray | None], None]
PAIR_SOLVERS: dict[str, PairSolver] = {
    "cpu": cpu.solve_pair,
    "opencv": opencv.solve_pair,
    OPENCV_CUDA: opencv.solve_pair_on_gpu,
}
BACKENDS = (CUDA, *PAIR_SOLVERS)

LARGEST_INITIAL_PIXELS = 1e6  # the square of much more than that is beyond float32

# A call fills the memory that is free, so threads take turns at each GPU.
_gpus: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class BackendUnavailable(RuntimeError):
    """A backend that needs what this machine has not."""


@cache
def fastest_backend(device: str = CUDA) -> str:
    """What `backend="auto"` takes: "cuda" where a GPU gives the bits of "cpu" for a small pair, else "cpu".

    A GPU that fails at that, or gives other bits, is left alone with a warning that says why.
    """
    try:
        ctypes.CDLL("libcuda.so.1")  # without a driver torch, whose import takes seconds, is not needed
    except OSError:
        return "cpu"
    rows, columns = np.mgrid[:48, :64].astype(np.float32)
    moving = [128 + 60 * np.sin(rows / 5 + i / 3) + 60 * np.cos(columns / 7 - i / 2) for i in range(3)]
    small = np.stack(moving).astype(np.uint8)
    try:
        import torch

        if not torch.cuda.is_available():
            return "cpu"
        if np.array_equal(tvl1(small, backend=CUDA, device=device), tvl1(small, backend="cpu")):
            return CUDA
        said = "its flow of a trial is not that of the CPU"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    warnings.warn(f"flow is computed on the CPU, not on {device}: {said}", RuntimeWarning, stacklevel=2)
    return "cpu"


def tvl1(
    frames: np.ndarray | Sequence[np.ndarray],
    params: TVL1Params = TVL1Params(),
    *,
    backend: str = "auto",
    device: str = CUDA,
    threads: int = 1,
    initial: np.ndarray | None = None,
) -> np.ndarray:
    """TV-L1 flow between the consecutive frames of a clip; arguments and errors as `tvl1_pairs` has them.

    Args:
        frames: [T, H, W] uint8 grey pictures, T ≥ 2, or as many arrays of one size.
        params: parameters of the method.
        backend: what computes it.
        device: where "cuda" works.
        threads: pairs computed at a time on the CPU.
        initial: [T − 1, H, W, 2] float32, flow to begin with.

    Returns:
        [T − 1, H, W, 2] float32: the motion (x, y) in pixels from frame i to frame i + 1.
    """
    frames = _grey("frames", frames)
    if len(frames) < 2:
        raise ValueError(f"{len(frames)} frame{'s' * (len(frames) != 1)}: flow needs two or more")
    return tvl1_pairs(frames[:-1], frames[1:], params, backend=backend, device=device, threads=threads, initial=initial)


def tvl1_pairs(
    first: np.ndarray | Sequence[np.ndarray],
    second: np.ndarray | Sequence[np.ndarray],
    params: TVL1Params = TVL1Params(),
    *,
    backend: str = "auto",
    device: str = CUDA,
    threads: int = 1,
    initial: np.ndarray | None = None,
) -> np.ndarray:
    """TV-L1 flow of pairs, which may come from many clips of one size.

    A pair's result depends on the pair, the parameters and the backend alone; "cuda" and "cpu" give the same.

    Args:
        first: [N, H, W] uint8 grey pictures with sides of at least 16 pixels.
        second: like `first`.
        params: parameters of the method.
        backend: "cuda" and "cpu" are ours. "opencv" is `cv2.optflow.DualTVL1OpticalFlow`, the reference, which ours
            follow to some hundredths of a pixel. "opencv-cuda" is `cv2.cuda.OpticalFlowDual_TVL1` of an OpenCV that
            was built with it: outer × inner iterations in a row and never a median. "auto" see `fastest_backend`.
        device: where "cuda" works, as torch names it.
        threads: pairs computed at a time on the CPU. OpenCV's own are set to one, and stay so.
        initial: [N, H, W, 2] float32, flow to begin with; default: none.

    Returns:
        [N, H, W, 2] float32: the motion (x, y) in pixels from `first[i]` to `second[i]`.

    Raises:
        ValueError: another shape, dtype or backend, sizes that change, or pictures that are too small.
        BackendUnavailable: one that needs what this machine has not.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend {backend!r} is unknown; there are 'auto', {', '.join(map(repr, BACKENDS))}")
    first, second = _grey("first", first), _grey("second", second)
    if first.shape != second.shape:
        raise ValueError(f"pairs must be of one size and number, not {list(first.shape)} and {list(second.shape)}")
    height, width = first.shape[1:]
    if min(height, width) < MINIMUM_SIDE_PIXELS:
        raise ValueError(f"frames of {width}x{height}: flow needs sides of at least {MINIMUM_SIDE_PIXELS} pixels")
    if initial is not None:
        initial = _checked_initial(np.asarray(initial), (*first.shape, 2))
    chosen = fastest_backend(device) if backend == "auto" else backend
    _require(chosen, device)
    if chosen == CUDA:
        return _on_gpu(first, second, params, initial, device)
    return _on_cpu(first, second, params, initial, PAIR_SOLVERS[chosen], threads)


def _grey(name: str, pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """[N, H, W] uint8."""
    if not isinstance(pictures, np.ndarray):
        pictures = list(pictures)
        for number, picture in enumerate(pictures):
            if np.shape(picture) != np.shape(pictures[0]):
                was, now = list(np.shape(pictures[0])), list(np.shape(picture))
                raise ValueError(f"{name}: picture {number} is {now}, those before it {was}; flow needs one size")
    pictures = np.asarray(pictures)
    if np.issubdtype(pictures.dtype, np.floating) and pictures.size:
        held = "hold NaN" if np.isnan(pictures).any() else f"reach from {np.min(pictures):g} to {np.max(pictures):g}"
        raise ValueError(
            f"{name} are {pictures.dtype} and {held}; whether 1 or 255 is white is not guessed: give uint8, 0 to 255"
        )
    if pictures.ndim != 3 or pictures.dtype != np.uint8:
        raise ValueError(f"{name} must be [N, H, W] uint8 grey, not {pictures.dtype} {list(pictures.shape)}")
    return pictures


def _require(backend: str, device: str) -> None:
    """Raises BackendUnavailable."""
    if backend == CUDA:
        try:
            import torch
            import triton  # noqa: F401
        except ImportError as error:
            raise BackendUnavailable(f"the backend 'cuda' needs torch and Triton: {error}") from error
        if not torch.cuda.is_available():
            raise BackendUnavailable(f"the backend 'cuda' needs a GPU that torch {torch.__version__} can use")
        try:
            known = torch.device(device).type == CUDA
        except RuntimeError:
            known = False
        if not known:
            raise ValueError(f"device {str(device)!r}: the backend 'cuda' works on 'cuda', 'cuda:1' and so on")
    if backend == OPENCV_CUDA:
        if not hasattr(cv2, "cuda_OpticalFlowDual_TVL1"):
            raise BackendUnavailable("the backend 'opencv-cuda' needs an OpenCV built with CUDA; pip's never is")
        if not cv2.cuda.getCudaEnabledDeviceCount():
            raise BackendUnavailable("the backend 'opencv-cuda' needs a GPU, and OpenCV sees none")


def _checked_initial(initial: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if initial.shape != shape or initial.dtype != np.float32:
        want = list(shape)
        raise ValueError(f"initial must be {want} float32 pixels, not {initial.dtype} {list(initial.shape)}")
    if not np.isfinite(initial).all():
        raise ValueError("initial holds NaN or infinity")
    if np.abs(initial).max(initial=0) > LARGEST_INITIAL_PIXELS:
        raise ValueError(f"initial moves by more than {LARGEST_INITIAL_PIXELS:g} pixels")
    return initial


def _on_cpu(
    first: np.ndarray,
    second: np.ndarray,
    params: TVL1Params,
    initial: np.ndarray | None,
    solve_pair: PairSolver,
    threads: int,
) -> np.ndarray:
    # One OpenCV thread a pair: threads over pairs scale better than OpenCV's over rows, and workers must not multiply.
    cv2.setNumThreads(1)
    flow = np.empty((*first.shape, 2), np.float32)

    def solve(i: int) -> None:
        solve_pair(first[i], second[i], params, flow[i], None if initial is None else initial[i])

    with ThreadPoolExecutor(max(1, min(threads, len(flow)))) as pool:
        for _ in pool.map(solve, range(len(flow))):
            pass  # raises what a solver raised
    return flow


def _on_gpu(
    first: np.ndarray, second: np.ndarray, params: TVL1Params, initial: np.ndarray | None, device: str
) -> np.ndarray:
    import torch  # seconds that users of the CPU need not wait

    from flow.cuda import solve_pairs

    with _gpus[device]:
        one, two = (torch.from_numpy(np.ascontiguousarray(pictures)).to(device) for pictures in (first, second))
        begin = None if initial is None else torch.from_numpy(np.ascontiguousarray(initial)).to(device)
        return solve_pairs(one, two, params, begin).cpu().numpy()
