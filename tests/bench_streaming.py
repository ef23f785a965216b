"""`make bench`, streaming: windows of stored clips on one core, against a plain WebDataset and PyAV loader."""

import io
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import webdataset
from click.testing import CliRunner

from model import Stream
from pipeline.cli import main as kinetics_prep
from train.decode import CROP_PIXELS, MEMBER_OF, network_input, training_window
from train.plan import View
from train.stream import Sample, open_samples

SEED = 20170722
FRAMES = 64
CLIP_SECONDS = 10
WINDOWS = 8  # of each clip
ROUNDS = 7
SHARED = Path(os.environ.get("QUO_VADIS_SHARED", Path(__file__).parents[2] / "shared"))


class Stored(NamedTuple):
    """A clip's stream as we store it, and as x264 does when nobody asks for anything."""

    sample: Sample
    stream: Stream
    by_default: bytes

    @property
    def pictures(self) -> int:
        return int(self.sample.record[f"{self.stream}_frames"])


def real_clips() -> list[Path]:
    """Those in the folder beside the project, where there is one."""
    return sorted((SHARED / "data" / "videos").glob("*.*"))


def bench_streaming(clips: list[Path], folder: Path) -> dict[str, list[tuple[str, ...]]]:
    """A table for each stream: clip by clip, windows a second by each loader; medians of interleaved rounds."""
    stored = prepare(clips, folder)
    tables = {}
    with one_core():
        for stream in MEMBER_OF:
            measured = {clip.sample.key: _measure(clip, folder) for clip in stored if clip.stream == stream}
            tables[stream] = _table(measured)
    return tables


def prepare(clips: list[Path], folder: Path) -> list[Stored]:
    """Both streams of the beginning of each clip, through kinetics-prep."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    rows = ["path,label,start,end"]
    for clip in clips:
        shutil.copy(clip, sources)
        rows.append(f"{clip.name},clip,0,{CLIP_SECONDS}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    run = ["run", "--manifest", folder / "list.csv", "--source", sources, "--output", folder / "dataset"]
    result = CliRunner().invoke(kinetics_prep, list(map(str, run)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    stored = []
    for sample in open_samples(str(folder / "dataset")):
        for stream, member in MEMBER_OF.items():
            stored.append(Stored(sample, stream, _by_default(sample.read((member,))[member], folder)))
    return stored


def _by_default(video: bytes, folder: Path) -> bytes:
    """The same pictures as ffmpeg codes them with `-c:v libx264` and nothing else."""
    ours, theirs = folder / "ours.mp4", folder / "theirs.mp4"
    ours.write_bytes(video)
    command = ["ffmpeg", "-v", "error", "-y", "-i", ours, "-c:v", "libx264", "-pix_fmt", "yuv420p", theirs]
    subprocess.run(command, check=True, timeout=600)
    return theirs.read_bytes()


@contextmanager
def one_core() -> Iterator[None]:
    """This process on one core, as one worker of a loader has it."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _measure(clip: Stored, folder: Path) -> dict[str, np.ndarray]:
    """Processor's seconds for all windows by loader, [rounds]; every loader has the same windows.

    All is in memory by then and runs in one thread, so that these are the seconds of a core with nothing else to do.
    """
    rng = np.random.default_rng([SEED, len(clip.sample.key), clip.pictures])
    starts = rng.integers(0, max(clip.pictures - FRAMES, 0) + 1, WINDOWS).tolist()
    places = rng.random((WINDOWS, 2)).tolist()
    pictures = [tuple((start + k) % clip.pictures for k in range(FRAMES)) for start in starts]
    views = [View(0, {clip.stream: p}, *place, flip=False) for p, place in zip(pictures, places, strict=True)]
    member = MEMBER_OF[clip.stream]
    tars = {}
    for name, video in (("theirs", clip.by_default), ("ours", clip.sample.read((member,))[member])):
        tars[name] = folder / f"{name}.tar"
        with webdataset.TarWriter(str(tars[name])) as writer:
            for number in range(WINDOWS):
                writer.write({"__key__": f"{number:03d}", member: video})

    def ours(floats: bool) -> None:
        for view in views:
            video = clip.sample.read((member,))[member]
            window = torch.from_numpy(training_window(video, clip.stream, view))[None]
            if floats:
                network_input(window, clip.stream)

    def theirs(tar: Path, floats: bool) -> None:
        for window in plain_windows(tar, clip.stream, views):
            if floats:
                to_floats(window, clip.stream)

    loaders: dict[str, Callable[[], None]] = {
        "WebDataset + PyAV, x264's defaults": lambda: theirs(tars["theirs"], floats=False),
        "WebDataset + PyAV, our files": lambda: theirs(tars["ours"], floats=False),
        "ours": lambda: ours(floats=False),
        "defaults, floats": lambda: theirs(tars["theirs"], floats=True),
        "ours, floats": lambda: ours(floats=True),
    }
    spent: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS + 1):
        for name, load in loaders.items():
            started = time.process_time()
            load()
            spent[name].append(time.process_time() - started)
    return {name: np.array(seconds[1:]) for name, seconds in spent.items()}  # the first warms up


def plain_windows(tar: Path, stream: Stream, views: list[View]) -> Iterator[np.ndarray]:
    """What a careful user writes: seek to the window, decode, convert and crop its pictures; [T, H, W, C] uint8."""
    member, remaining = MEMBER_OF[stream], iter(views)

    def decode(sample: dict[str, bytes]) -> np.ndarray:
        view, pictures = next(remaining), []
        with av.open(io.BytesIO(sample[member])) as container:
            video = container.streams.video[0]
            video.thread_type = "NONE"
            height, width = video.height // (2 if stream == "flow" else 1), video.width
            top, left = int(view.top * (height - CROP_PIXELS + 1)), int(view.left * (width - CROP_PIXELS + 1))
            down, across = slice(top, top + CROP_PIXELS), slice(left, left + CROP_PIXELS)
            container.seek(int(view.pictures[stream][0] / video.average_rate / video.time_base), stream=video)
            for frame in container.decode(video):
                if round(frame.time * 25) < view.pictures[stream][0]:
                    continue
                if stream == "rgb":
                    pictures.append(frame.to_ndarray(format="rgb24")[down, across])
                else:
                    codes = frame.to_ndarray(format="gray")
                    pictures.append(np.stack([codes[:height][down, across], codes[height:][down, across]], axis=-1))
                if len(pictures) == FRAMES:
                    break
        window = np.stack(pictures)
        return window if len(window) == FRAMES else window[np.arange(FRAMES) % len(window)]

    yield from webdataset.WebDataset(str(tar), shardshuffle=False).map(decode)


def to_floats(window: np.ndarray, stream: Stream) -> torch.Tensor:
    """[T, H, W, C] uint8 as the network takes it, [1, C, T, H, W] from −1 to 1."""
    x = torch.from_numpy(window)[None].permute(0, 4, 1, 2, 3).float()
    return x.div_(127.5).sub_(1) if stream == "rgb" else x.sub_(128).div_(127)


def _table(measured: dict[str, dict[str, np.ndarray]]) -> list[tuple[str, ...]]:
    """Clips a second, and ours against the first loader: medians of the rounds; at last all clips, each as often."""
    first, _, ours, *floats = next(iter(measured.values()))
    together = {name: sum(clip[name] for clip in measured.values()) for name in (*next(iter(measured.values())),)}
    rows = [("clips/s", *next(iter(measured.values())), "ours / defaults", "the same with floats")]
    for key, spent in [*measured.items(), ("all", together)]:
        windows = WINDOWS * (len(measured) if key == "all" else 1)
        speeds = [f"{windows / np.median(seconds):.1f}" for seconds in spent.values()]
        ratios = [np.median(spent[a] / spent[b]) for a, b in ((first, ours), tuple(floats))]
        rows.append((key, *speeds, *(f"{ratio:.1f}" for ratio in ratios)))
    return rows
