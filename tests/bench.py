"""`make bench`: seconds as ratios against named alternatives, on the same input in the same run.

The input of the flow is rendered scenes whose true flow is known, that of its coding a clip of the demo's at 320×240 or
near it; seeds are such that nothing was tuned on.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from skimage.registration import optical_flow_tvl1

from flow import decode_flow_codes, dequantise, encode_flow, quantise, tvl1
from pipeline import steps
from pipeline.cli import main as kinetics_prep
from pipeline.fetch import FolderSource
from pipeline.run import make_plan
from tests.demo.render import frames, plan_videos, render_all, write_manifest
from tests.scenes import HEIGHT, SCENES, WIDTH, render_pair

SEED = 20170722
SEEDS = (1001, 1002)  # of the scenes; nothing was tuned on them
PAIRS = 8
BOUND_PIXELS = 20.0


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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


def bench_book_keeping(folder: Path) -> None:
    """Preparing through Beam, ledger, shards and index, against the bare steps in as many threads."""
    videos = plan_videos(1, 1, seed=SEED)
    render_all(videos, folder / "videos")
    train, val, classes = write_manifest(videos, folder)
    workers = os.cpu_count() or 1

    def bare() -> None:
        source = FolderSource(str(folder / "videos"))
        plan = make_plan([train, val], source, folder / "bare", flow=None, classes=str(classes))
        with ThreadPoolExecutor(workers) as pool:
            outcomes = list(pool.map(lambda clip: steps.fetch_and_encode(clip, plan.job), plan.clips))
        assert all(outcome.reason is None for outcome in outcomes)

    lists = ["--manifest", str(train), "--manifest", str(val), "--classes", str(classes)]
    command = ["run", *lists, "--source", str(folder / "videos"), "--output", str(folder / "beam"), "--flow", "none"]
    PipelineOptions()  # Beam's imports are not what is measured
    alone = seconds_of(bare)
    whole = seconds_of(lambda: kinetics_prep(command, standalone_mode=False))
    rows = [("", "s", "ratio"), ("bare steps, threads", f"{alone:.2f}", "1.00")]
    rows.append(("kinetics-prep run", f"{whole:.2f}", f"{whole / alone:.2f}"))
    table(f"Book-keeping: {len(videos)} clips of 2 s, no flow, {workers} workers", rows)


def end_point_error(flow: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of every pixel, in pixels."""
    return np.asarray(np.hypot(*np.moveaxis(flow - reference, -1, 0)))


def bench_flow() -> None:
    """Case by case: what each method needs for a pair on one thread, and how far it is from the truth."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "cv2 DualTVL1": lambda pair: tvl1(pair, backend="opencv")[0],
        "ours, cpu": lambda pair: tvl1(pair, backend="cpu")[0],
        "cv2 DIS medium": lambda pair: dis.calc(pair[0], pair[1], None),
        "scikit-image TV-L1": lambda pair: np.stack(optical_flow_tvl1(*pair / np.float32(255))[::-1], axis=-1),
    }
    tvl1(render_pair(SCENES[0], 0, 64, 64)[0])  # compiles it
    cv2.setNumThreads(1)
    head = ("scene", "seed", "mean |flow|", "s a pair: cv2", "ours", "DIS", "scikit-image", "cv2 / ours")
    times, errors = [head], [("scene", "seed", *methods, "ours to cv2: mean", "99th percentile")]
    ratios = []
    for scene in SCENES:
        for seed in SEEDS:
            pair, truth, _ = render_pair(scene, seed)
            seconds, flows = zip(*(timed(method, pair) for method in methods.values()), strict=True)
            ratios.append(seconds[0] / seconds[1])
            size = f"{end_point_error(truth, np.zeros_like(truth)).mean():.2f}"
            times.append((scene.name, str(seed), size, *(f"{s:.3f}" for s in seconds), f"{ratios[-1]:.1f}"))
            to_truth = [f"{end_point_error(flow, truth).mean():.3f}" for flow in flows]
            to_cv2 = end_point_error(flows[1], flows[0])
            errors.append(
                (scene.name, str(seed), *to_truth, f"{to_cv2.mean():.4f}", f"{np.percentile(to_cv2, 99):.3f}")
            )
    mean = f"geometric mean {np.exp(np.mean(np.log(ratios))):.1f}"
    table(f"TV-L1, {WIDTH}x{HEIGHT}, one thread; {mean}, least {min(ratios):.1f}", times)
    table("Mean end-point error to the true flow, in pixels, and of ours to OpenCV's", errors)


def bench_threads() -> None:
    """Eight pairs on one thread and on all, against OpenCV's own threads."""
    cores = os.cpu_count() or 1
    pictures = np.concatenate([render_pair(SCENES[-1], seed)[0] for seed in range(100, 104)])
    solver = cv2.optflow.DualTVL1OpticalFlow.create()

    def opencv_threads() -> None:
        cv2.setNumThreads(cores)
        for one, two in pairwise(pictures):
            solver.calc(one, two, None)

    measured = {
        "ours, 1 thread": seconds_of(lambda: tvl1(pictures)),
        f"ours, {cores} threads": seconds_of(lambda: tvl1(pictures, threads=cores)),
        f"cv2 DualTVL1, {cores} threads of its own": seconds_of(opencv_threads),
    }
    pairs = len(pictures) - 1
    rows = [("", "s a pair", "pairs/s")]
    rows += [(name, f"{spent / pairs:.3f}", f"{pairs / spent:.1f}") for name, spent in measured.items()]
    table(f"Threads: {pairs} pairs of {WIDTH}x{HEIGHT}", rows)


def bench_coding(flow: np.ndarray) -> None:
    """Stored flow against JPEG pictures and no coding: size, error, time to decode."""
    clipped = np.clip(flow, -BOUND_PIXELS, BOUND_PIXELS)
    codes = quantise(flow)
    rows = [("", "KB a pair", "mean error px", "ms a pair to decode")]

    def row(name: str, size: int, decode: Callable[[], np.ndarray]) -> None:
        spent = seconds_of(decode)
        error = np.abs(decode() - clipped).mean()
        rows.append((name, f"{size / len(flow) / 1e3:.1f}", f"{error:.3f}", f"{1e3 * spent / len(flow):.2f}"))

    for crf in (6, 12, 18, 23):
        video = encode_flow(flow, crf=crf)
        row(f"H.264 crf {crf}", len(video), lambda video=video: dequantise(decode_flow_codes(video)))
    for quality in (90, 95):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        files = [cv2.imencode(".jpg", codes[i, :, :, c], options)[1] for i in range(len(codes)) for c in (0, 1)]

        def decode(files: list[np.ndarray] = files) -> np.ndarray:
            planes = [cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files]
            return dequantise(np.stack(planes).reshape(len(codes), 2, *codes.shape[1:3]).transpose(0, 2, 3, 1))

        row(f"JPEG q{quality}, x and y", sum(map(len, files)), decode)
    row("8-bit codes", codes.nbytes, lambda: dequantise(codes))
    table(f"Coding of flow: {len(flow)} pairs of {flow.shape[2]}x{flow.shape[1]}, ±{BOUND_PIXELS:g} px", rows)


def main() -> None:
    """Measure and print."""
    print(json.dumps({"cores": os.cpu_count(), "opencv": cv2.__version__, "numpy": np.__version__}))
    with tempfile.TemporaryDirectory() as folder:
        bench_book_keeping(Path(folder))
    video = next(v for v in plan_videos(1, 6, seed=SEED) if v.split == "val" and v.width > v.height)
    grey = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in frames(video))
    bench_flow()
    bench_threads()
    bench_coding(tvl1(np.stack(list(islice(grey, PAIRS + 1))), threads=os.cpu_count() or 1))


if __name__ == "__main__":
    main()
