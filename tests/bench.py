"""`make bench`: seconds as ratios against named alternatives, on the same input in the same run.

The input of the flow is rendered scenes whose true flow is known; that of its coding is the clips that are named,
`make bench CLIPS="a.mp4 b.mp4"`, or one of the demo's; that of streaming is the clips that are named, or the real ones
beside the project, or the rendered one. Seeds are such that nothing was tuned on.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import cv2
import numpy as np
from skimage.registration import optical_flow_tvl1

from flow import VARIANTS, BackendUnavailable, decode_flow_codes, dequantise, encode_flow, quantise, tvl1, tvl1_pairs
from manifests.sample import FlowCoding, RgbCoding
from pipeline.video import decode_luma, encode_rgb
from tests.bench_model import bench_model
from tests.bench_pipeline import (
    PAIRS_PER_SECOND,
    bench_book_keeping,
    bench_cores,
    bench_feeding,
    bench_scale,
    seconds_of,
)
from tests.bench_streaming import bench_streaming, real_clips
from tests.scenes import HEIGHT, SCENES, WIDTH, render_pair

SEED = 20170722
SEEDS = (1001, 1002)  # of the scenes; nothing was tuned on them
PAIRS = 16  # of a clip
BOUND_PIXELS = 20.0


def timed(method: Callable[[np.ndarray], np.ndarray], pair: np.ndarray) -> tuple[float, np.ndarray]:
    """Wall-clock seconds of a method on a pair, and what it found."""
    started = time.perf_counter()
    flow = method(pair)
    return time.perf_counter() - started, flow


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print rows in aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def end_point_error(flow: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of every pixel, in pixels."""
    return np.asarray(np.hypot(*np.moveaxis(flow - reference, -1, 0)))


def flow_methods() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Flow of a pair by each method there is here, on one thread."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "cv2": lambda pair: tvl1(pair, backend="opencv")[0],
        "ours": lambda pair: tvl1(pair, backend="cpu")[0],
        "ours, flat": lambda pair: tvl1(pair, VARIANTS["tvl1-flat"], backend="cpu")[0],
        "DIS medium": lambda pair: dis.calc(pair[0], pair[1], None),
        "scikit-image": lambda pair: np.stack(optical_flow_tvl1(*pair / np.float32(255))[::-1], axis=-1),
    }
    for backend in ("cuda", "opencv-cuda"):
        try:
            tvl1(np.zeros((2, 32, 32), np.uint8), backend=backend)
        except BackendUnavailable as error:
            print(f"not measured: {error}")
        else:
            methods[backend] = lambda pair, backend=backend: tvl1(pair, backend=backend)[0]
    return methods


def bench_flow() -> None:
    """Case by case: what each method needs for a pair on one thread, and how far it is from the truth and from cv2."""
    methods = flow_methods()
    tvl1(render_pair(SCENES[0], 0, 64, 64)[0])  # compiles it
    cv2.setNumThreads(1)
    times: list[tuple[str, ...]] = [("scene", "seed", "mean |flow|", *methods, "cv2 / ours")]
    errors: list[tuple[str, ...]] = [("scene", "seed", *methods)]
    apart: list[tuple[str, ...]] = [("scene", "seed", "ours: mean", "99th percentile", "ours, flat: mean")]
    ratios = []
    for scene, seed in product(SCENES, SEEDS):
        pair, truth, _ = render_pair(scene, seed)
        seconds, flows = zip(*(timed(method, pair) for method in methods.values()), strict=True)
        ratios.append(seconds[0] / seconds[1])
        name = scene.name, str(seed)
        size = f"{end_point_error(truth, np.zeros_like(truth)).mean():.2f}"
        times.append((*name, size, *(f"{s:.3f}" for s in seconds), f"{ratios[-1]:.1f}"))
        errors.append((*name, *(f"{end_point_error(flow, truth).mean():.3f}" for flow in flows)))
        ours, flat = (end_point_error(flow, flows[0]) for flow in flows[1:3])
        apart.append((*name, f"{ours.mean():.4f}", f"{np.percentile(ours, 99):.3f}", f"{flat.mean():.3f}"))
    mean = f"geometric mean {np.exp(np.mean(np.log(ratios))):.1f}"
    table(f"TV-L1, {WIDTH}x{HEIGHT}: seconds a pair on one thread; cv2 / ours: {mean}, least {min(ratios):.1f}", times)
    table("Mean end-point error to the true flow, in pixels", errors)
    table("End-point error to cv2's TV-L1, in pixels", apart)


def bench_threads() -> None:
    """Eight pairs on one thread and on all, against OpenCV's own threads."""
    cores = os.cpu_count() or 1
    first, second = np.stack([render_pair(SCENES[0], seed)[0] for seed in range(100, 108)], axis=1)
    solver = cv2.optflow.DualTVL1OpticalFlow.create()

    def opencv_threads() -> None:
        cv2.setNumThreads(cores)
        for one, two in zip(first, second, strict=True):
            solver.calc(one, two, None)

    measured = {
        "ours, 1 thread": seconds_of(lambda: tvl1_pairs(first, second, backend="cpu")),
        f"ours, {cores} threads": seconds_of(lambda: tvl1_pairs(first, second, backend="cpu", threads=cores)),
        f"cv2 DualTVL1, {cores} threads of its own": seconds_of(opencv_threads),
    }
    pairs = len(first)
    rows = [("", "s a pair", "pairs/s")]
    rows += [(name, f"{spent / pairs:.3f}", f"{pairs / spent:.1f}") for name, spent in measured.items()]
    table(f"Threads: {pairs} pairs of {WIDTH}x{HEIGHT}", rows)


def bench_coding(clip: Path) -> None:
    """Stored flow of a clip against JPEG pictures and no coding: size, error, time to decode."""
    flow = flow_of_stored(clip, crf=0)
    codes, clipped = quantise(flow), np.clip(flow, -BOUND_PIXELS, BOUND_PIXELS)
    rows: list[tuple[str, ...]] = [("", "KB a pair", "mean error px", "ms a pair to decode")]

    def row(name: str, size: int, decode: Callable[[], np.ndarray]) -> None:
        spent = min(seconds_of(decode) for _ in range(3))
        error = end_point_error(decode(), clipped).mean()
        rows.append((name, f"{size / len(flow) / 1e3:.2f}", f"{error:.3f}", f"{1e3 * spent / len(flow):.2f}"))

    for crf in (0, 12, 18, 21, 24, 27, 30):
        video = encode_flow(flow, crf=crf)
        name = f"H.264 crf {crf}" + {0: ", lossless", FlowCoding.crf: ", the default"}.get(crf, "")
        row(name, len(video), lambda video=video: dequantise(decode_flow_codes(video)))
    for quality in (75, 90, 95):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        files = [cv2.imencode(".jpg", codes[i, :, :, c], options)[1] for i in range(len(codes)) for c in (0, 1)]

        def decode(files: list[np.ndarray] = files) -> np.ndarray:
            planes = [cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files]
            return dequantise(np.stack(planes).reshape(len(codes), 2, *codes.shape[1:3]).transpose(0, 2, 3, 1))

        row(f"JPEG q{quality}, x and y", sum(map(len, files)), decode)
    row("8-bit codes", codes.nbytes, lambda: dequantise(codes))
    row("float32", flow.nbytes, lambda: clipped)
    size = f"{flow.shape[2]}x{flow.shape[1]}, mean |flow| {end_point_error(flow, np.zeros_like(flow)).mean():.2f} px"
    table(f"Coding of flow: {clip.name}, {len(flow)} pairs of {size}, ±{BOUND_PIXELS:g} px", rows)
    changes = (f"{end_point_error(flow_of_stored(clip, crf), flow).mean():.3f} px at crf {crf}" for crf in (12, 18, 23))
    print(f"  coding the RGB first changes the flow by {', '.join(changes)} of the RGB (18 is stored)")


def flow_of_stored(clip: Path, crf: int) -> np.ndarray:
    """Flow of a clip's first pairs, from RGB that was stored at that rate factor."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = (PAIRS + 1) / RgbCoding.frame_rate
        stored = encode_rgb(clip, Path(folder) / "rgb.mp4", replace(RgbCoding(), crf=crf), 0.0, seconds)
    return tvl1(decode_luma(stored.content), threads=os.cpu_count() or 1)


@click.command()
@click.argument("clips", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(clips: tuple[Path, ...]) -> None:
    """Measure and print; coding on the given CLIPS, by default on a rendered one."""
    print(json.dumps({"cores": os.cpu_count(), "opencv": cv2.__version__, "numpy": np.__version__}))
    with tempfile.TemporaryDirectory() as folder:
        table("Book-keeping: ratio of all to the bare steps", bench_book_keeping(Path(folder)))
        table("Cores", bench_cores(Path(folder)))
        rendered = min((Path(folder) / "videos").glob("*.*"))
        feeding = bench_feeding(clips or (rendered,), Path(folder))
        table(f"Feeding a GPU of {PAIRS_PER_SECOND} pairs/s (not measured: no GPU is asked here)", feeding)
        table("Scale", bench_scale(Path(folder)))
        streamed = list(clips) or real_clips() or [rendered]
        for stream, rows in bench_streaming(streamed, Path(folder) / "streaming").items():
            table(f"Streaming: 64-frame 224x224 windows of {stream} on one core", rows)
        for title, rows in bench_model():
            table(title, rows)
        bench_flow()
        bench_threads()
        for clip in clips or (rendered,):
            bench_coding(clip)


if __name__ == "__main__":
    main()
