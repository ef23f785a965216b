"""`make bench`: seconds as ratios against named alternatives, on the same input in the same run.

The input is the demo's held-out motion clips at 320×240 or near it, from seeds that nothing was tuned on.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from flow import decode_flow_codes, dequantise, encode_flow, quantise, tvl1
from pipeline import steps
from pipeline.cli import main as kinetics_prep
from pipeline.fetch import FolderSource
from pipeline.run import make_plan
from tests.demo.render import frames, plan_videos, render_all, write_manifest

SEED = 20170722
PAIRS = 8
BOUND_PIXELS = 20.0


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
        plan = make_plan([train, val], source, folder / "bare", flow=False, classes=str(classes))
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


def bench_flow(pictures: np.ndarray) -> np.ndarray:
    """TV-L1 over threads of pairs, against OpenCV's own threads and against OpenCV's DIS."""
    cores = os.cpu_count() or 1
    solver = cv2.optflow.DualTVL1OpticalFlow.create()
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pairs = list(pairwise(pictures))

    def opencv(threads: int) -> float:
        cv2.setNumThreads(threads)
        return seconds_of(lambda: [solver.calc(one, two, None) for one, two in pairs]) / len(pairs)

    reference = opencv(1)
    ours: list[np.ndarray] = []
    measured = {
        "cv2 DualTVL1, 1 thread": reference,
        f"cv2 DualTVL1, {cores} threads": opencv(cores),
        "flow.tvl1, 1 thread": seconds_of(lambda: ours.append(tvl1(pictures))) / len(pairs),
        f"flow.tvl1, {cores} threads": seconds_of(lambda: tvl1(pictures, threads=cores)) / len(pairs),
        "cv2 DIS medium, 1 thread": seconds_of(lambda: [dis.calc(a, b, None) for a, b in pairs]) / len(pairs),
    }
    height, width = pictures.shape[1:]
    rows = [("", "s a pair", "speed-up")]
    rows += [(name, f"{value:.3f}", f"{reference / value:.2f}") for name, value in measured.items()]
    table(f"Flow: {len(pairs)} pairs of {width}x{height}", rows)
    return ours[0]


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
    pictures = np.stack([picture for picture, _ in zip(grey, range(PAIRS + 1), strict=False)])
    bench_coding(bench_flow(pictures))


if __name__ == "__main__":
    main()
