"""`make bench`, kinetics-prep: what its book-keeping adds to the bare steps, what a second core gives, and scale."""

import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from flow import encode_flow
from manifests.classes import read_classes
from manifests.clip import youtube_clip
from manifests.index import INDEX_SUFFIX, Shard, Snapshot, record_dtype, write_records
from manifests.sample import RgbCoding, Specification
from pipeline import steps
from pipeline.cli import main as kinetics_prep
from pipeline.fetch import FolderSource
from pipeline.generations import publish
from pipeline.ledger import Outcome, record_outcomes
from pipeline.run import make_plan
from pipeline.video import decode_luma, encode_rgb, flow_coding

CLIPS, FLOW_CLIPS = 24, 12  # with flow a clip takes longer
CLIP_SECONDS = 10
SMALL = ("--short-side", "64")  # of the clips with flow: what is measured is who waits for whom, and not TV-L1
PAIRS_PER_SECOND = 3000  # what a GPU is to compute; no GPU is asked here
LISTED = 650_000
RERUN = 20_000
SAMPLES_PER_SHARD = Specification.samples_per_shard


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def render_sources(folder: Path) -> None:
    """Videos of ten seconds with noise in them, 640x360 at 30 frames a second, and lists of them beside the folder."""
    folder.mkdir()
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number in range(CLIPS):
        source = f"testsrc2=size=640x360:rate=30:duration={CLIP_SECONDS},noise=alls=3:allf=t:all_seed={number}"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", "-g", "60"]
        subprocess.run([*command, str(folder / f"{number:011d}.mp4")], check=True, timeout=120)
        rows.append(f"yoga,{number:011d},0,{CLIP_SECONDS},val")
    (folder.parent / "rgb.csv").write_text("\n".join(rows) + "\n")
    (folder.parent / "flow.csv").write_text("\n".join(rows[: 1 + FLOW_CLIPS]) + "\n")


def bench_book_keeping(folder: Path) -> list[tuple[str, ...]]:
    """Preparing through Beam, ledger, shards, index and snapshot, against the bare steps in as many threads."""
    render_sources(folder / "videos")
    workers, rows = os.cpu_count() or 1, [("", "bare steps, s", "kinetics-prep run, s", "ratio")]
    PipelineOptions()  # Beam's imports are not what is measured
    for name, flow, size in (("no flow, short side 256", None, ()), ("flow, short side 64", "tvl1", SMALL)):
        coding = flow_coding(flow, 24) if flow else None
        source = FolderSource(str(folder / "videos"))
        short_side = int(size[1]) if size else 256

        listed = folder / ("flow.csv" if flow else "rgb.csv")

        def bare(coding=coding, source=source, short_side=short_side, listed=listed) -> None:
            plan = make_plan([listed], [source], folder / "bare", flow=coding, short_side=short_side)
            with ThreadPoolExecutor(workers) as pool:
                outcomes = list(pool.map(lambda clip: _both(clip, plan.job), plan.clips))
            assert all(outcome.reason is None for outcome in outcomes)

        run = ["run", "--manifest", str(listed), "--source", source.folder, "--output", str(folder / "out"), *size]
        whole = [*run, "--flow", flow or "none"]
        ratios = []
        for _ in range(3):
            for made in ("bare", "out"):
                shutil.rmtree(folder / made, ignore_errors=True)
            alone, all_of_it = seconds_of(bare), seconds_of(lambda run=whole: kinetics_prep(run, standalone_mode=False))
            ratios.append((all_of_it / alone, alone, all_of_it))
        ratio, alone, all_of_it = sorted(ratios)[1]
        rows.append((name, f"{alone:.2f}", f"{all_of_it:.2f}", f"{ratio:.2f} (median of 3)"))
    return rows


def _both(clip, job):
    return steps.compute_flow(steps.fetch_and_encode(clip, job), job)


def bench_cores(folder: Path) -> list[tuple[str, ...]]:
    """The same run on one core and on two."""
    rows = [("", "one core, s", "two cores, s", "ratio")]
    cases = (("no flow, short side 256", "rgb.csv", ("--flow", "none")), ("flow, short side 64", "flow.csv", SMALL))
    for name, listed, options in cases:
        seconds = []
        for cores in ({0}, {0, 1}):
            output = folder / "cores"
            shutil.rmtree(output, ignore_errors=True)
            program = [
                str(Path(sys.executable).with_name("kinetics-prep")),
                "run",
                "--manifest",
                str(folder / listed),
                *options,
            ]
            program += ["--source", str(folder / "videos"), "--output", str(output), "--workers", str(len(cores))]
            work = lambda program=program, cores=cores: subprocess.run(  # noqa: E731
                program, check=True, capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
            )
            seconds.append(seconds_of(work))
        rows.append((name, *(f"{s:.2f}" for s in seconds), f"{seconds[0] / seconds[1]:.2f}"))
    return rows


def bench_feeding(videos: Iterable[Path], folder: Path) -> list[tuple[str, ...]]:
    """What cores do for a clip while a GPU computes its flow, and so how many cores keep a GPU busy."""
    coding = flow_coding("tvl1", 24)
    fast = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # flow that is as much work to encode
    rows = [("", "decode", "encode flow", "cut and encode RGB", "cores for flow alone", "cores for all")]
    for video in videos:
        spent = [_core_seconds()]
        rgb = encode_rgb(video, folder / "rgb.mp4", RgbCoding(), 0.0, CLIP_SECONDS)
        spent.append(_core_seconds())
        pictures = decode_luma(rgb.content)
        spent.append(_core_seconds())
        flow = [fast.calc(first, second, None) for first, second in pairwise(pictures)]
        spent.append(_core_seconds())
        encode_flow(flow, crf=coding.crf)
        spent.append(_core_seconds())
        encoding, decoding, _, coding_flow = np.diff(spent)
        gpu_seconds = (len(pictures) - 1) / PAIRS_PER_SECOND
        cores = ((decoding + coding_flow) / gpu_seconds, (decoding + coding_flow + encoding) / gpu_seconds)
        seconds = (f"{found:.2f} core-s" for found in (decoding, coding_flow, encoding))
        rows.append((f"{video.name}, {len(pictures)} frames", *seconds, *(f"{found:.0f}" for found in cores)))
    return rows


def _core_seconds() -> float:
    ours, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


def _alone(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds that a piece of code says, and its process's largest memory in GB."""
    command = [
        sys.executable,
        "-c",
        # Not getrusage's, which begins with the peak of the process that it was forked from.
        code + "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])",
    ]
    printed = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, timeout=900).stdout
    seconds, kilobytes = printed.split()[-2:]
    return float(seconds), int(kilobytes) * 1024 / 1e9


PLAN = """
import sys, time
from pathlib import Path
from pipeline.run import make_plan
from pipeline.fetch import FolderSource
from pipeline.video import flow_coding
started = time.perf_counter()
plan = make_plan([Path(sys.argv[1])], [FolderSource("/")], Path(sys.argv[2]), flow=flow_coding("tvl1", 24))
assert len(plan.listing.clips) == int(sys.argv[3]) and len(plan.clips) == int(sys.argv[4]), len(plan.clips)
print(time.perf_counter() - started)
"""
OPEN = """
import sys, time
from train.stream import open_samples
started = time.perf_counter()
assert len(open_samples(sys.argv[1], "train")) == int(sys.argv[2])
print(time.perf_counter() - started)
"""
RUN = """
import sys, time
from pipeline.cli import main
started = time.perf_counter()
main(["run", "--manifest", sys.argv[1], "--source", "/", "--output", sys.argv[2]], standalone_mode=False)
print(time.perf_counter() - started)
"""


def bench_scale(folder: Path) -> list[tuple[str, ...]]:
    """Planning, opening, and finding nothing to do, with as many clips as Kinetics has."""
    rows = [("", "s", "GB")]
    large, whole, small = folder / "large", folder / "whole", folder / "small"
    due = make_dataset(large, LISTED, published=LISTED * 9 // 10)
    seconds, memory = _alone(PLAN, str(large / "list.csv"), str(large), str(LISTED), str(due))
    rows.append((f"plan: list of {LISTED}, full ledger, nine tenths published", f"{seconds:.1f}", f"{memory:.2f}"))
    make_dataset(whole, LISTED, published=LISTED)
    seconds, memory = _alone(OPEN, str(whole), str(LISTED))
    rows.append((f"i3d-train opens a dataset of {LISTED} samples", f"{seconds:.1f}", f"{memory:.2f}"))
    make_dataset(small, RERUN, published=RERUN)
    seconds, memory = _alone(RUN, str(small / "list.csv"), str(small))
    rows.append((f"run again over {RERUN} finished clips", f"{seconds:.1f}", f"{memory:.2f}"))
    return rows


def make_dataset(output: Path, listed: int, published: int) -> int:
    """A list, its ledger, and a dataset that is all indexes: its shards are holes. Gives how many clips are due.

    Of the clips that are not published every second one was removed, which is for good, and the others are missing.
    """
    generator, classes = random.Random(listed), read_classes("kinetics400")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    clips = [
        youtube_clip(
            "".join(generator.choices(letters, k=11)), start, start + 10, generator.choice(classes.labels), "train"
        )
        for start in (generator.randrange(600) for _ in range(listed))
    ]
    output.mkdir()
    rows = (f'"{c.label}",{c.video},{c.start_seconds:.0f},{c.end_seconds:.0f},train\n' for c in clips)
    (output / "list.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "".join(rows))
    versions = {"ffmpeg": "5.1.8-0+deb12u1", "yt-dlp": "2026.8.19", "quo-vadis-rebuilt": "0.1.0"}
    stored = {"frames": 250, "duplicated": 0, "dropped": 49, "rgb_bytes": 1_234_567, "flow_bytes": 345_678}
    seconds = {"fetch": 3.123, "encode": 1.234, "flow": 21.123}
    said = "yt-dlp ended with status 1: ERROR: [youtube] Video unavailable. This video has been removed by the uploader"

    def outcomes():
        for number, clip in enumerate(clips):
            if number < published:
                yield Outcome(clip, seconds=seconds, stored=stored, versions=versions)
            else:
                yield Outcome(clip, "removed" if number % 2 else "missing", said, {"fetch": 1.0}, versions=versions)

    record_outcomes(output, outcomes())
    specification = Specification(classes.name, classes.sha256, flow=flow_coding("tvl1", 24))
    shards = [
        write_index(output, number, clips[start : min(start + SAMPLES_PER_SHARD, published)], classes.index)
        for number, start in enumerate(range(0, published, SAMPLES_PER_SHARD))
    ]
    publish(output, Snapshot("0001", None, specification, classes, tuple(shards)))
    return sum(number % 2 == 0 for number in range(published, listed))


def write_index(output: Path, number: int, clips: list, class_index: dict[str, int]) -> Shard:
    """A shard that is a hole, and its index."""
    records = np.zeros(len(clips), record_dtype(25))
    records["key"] = sorted(clip.key.encode() for clip in clips)
    records["class_index"] = [class_index[clip.label] for clip in clips]
    for stem, length in (("rgb", 1_234_567), ("flow", 345_678), ("json", 1500)):
        records[f"{stem}_offset"], records[f"{stem}_length"] = np.arange(len(clips)) * 2_000_000 + 512, length
    records["rgb_frames"], records["flow_frames"] = 250, 249
    index = write_records(records)
    size, hashed = len(clips) * 2_000_000, hashlib.sha256(index).hexdigest()
    path = output / "shards" / "train" / f"g0001-{number:06d}-{hashed[:12]}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    path.with_name(path.stem + INDEX_SUFFIX).write_bytes(index)
    return Shard(path.relative_to(output).as_posix(), "train", "train", True, len(clips), size, "0" * 64, hashed)
