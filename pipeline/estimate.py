"""What a run would cost, before it is started: measured on a few of its clips, which are really prepared."""

import math
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flow import fastest_backend, tvl1
from manifests.clip import Clip
from pipeline.archives import ArchiveError, read_archive
from pipeline.fetch import CutClip, Video, fetch, forget_refusals
from pipeline.job import Job
from pipeline.remote import RemoteVideo
from pipeline.run import Plan
from pipeline.samples import add_flow, members_without_flow
from pipeline.steps import encode
from pipeline.units import core_time, duration, size
from pipeline.video import VideoError

SEED = 0
STAGES = ("fetch", "encode", "flow")


def _zeros() -> dict[str, float]:
    return dict.fromkeys(STAGES, 0.0)


@dataclass
class Measured:
    """What one clip has cost; a failure costs what was done until then."""

    reason: str | None = None  # of the ledger's
    fetched_bytes: int = 0
    stored_bytes: int = 0
    core_seconds: dict[str, float] = field(default_factory=_zeros)  # by stage: processor time, of children too
    seconds: dict[str, float] = field(default_factory=_zeros)  # by stage: wall-clock time


class Mean(NamedTuple):
    """The mean of a sample and its standard error; that of a single clip is not known (None)."""

    mean: float
    error: float | None

    def times(self, factor: float) -> "Mean":
        """The same for so many clips."""
        return Mean(self.mean * factor, None if self.error is None else self.error * factor)


@dataclass(frozen=True)
class Estimate:
    """What a run would do, and what a clip costs by the sample; `due` clips are to be worked on."""

    due: int
    backend: str | None  # that computed the sample's flow
    sample: Sequence[Measured]

    def a_clip(self, values: Sequence[float]) -> Mean:
        """Mean over the sample. Drawn without putting back, so that a sample of all clips has no error."""
        count = len(values)
        if count == 1 and self.due > 1:
            return Mean(values[0], None)
        spread = float(np.std(values, ddof=1)) if count > 1 else 0.0
        return Mean(float(np.mean(values)), spread / math.sqrt(count) * math.sqrt(max(0.0, 1 - count / self.due)))

    def costs(self) -> dict[str, Mean]:
        """What a clip costs: bytes, core-seconds by stage, GPU-seconds where one computes flow."""
        on_gpu = self.backend not in (None, "cpu")
        found = {
            "bytes to fetch": self.a_clip([clip.fetched_bytes for clip in self.sample]),
            "bytes to store": self.a_clip([clip.stored_bytes for clip in self.sample]),
        }
        for stage in STAGES:
            found[f"core-seconds {stage}"] = self.a_clip([clip.core_seconds[stage] for clip in self.sample])
        if on_gpu:
            found["GPU-seconds flow"] = self.a_clip([clip.seconds["flow"] for clip in self.sample])
        return found

    def wall_seconds(self, workers: int, cores: int) -> Mean:
        """Wall-clock seconds of a clip when `workers` work without a pause: whichever is short, turns or cores.

        Downloads have turns of their own and overlap with computing.
        """
        fetching, computing, busy = [], [], []
        for clip in self.sample:
            fetching.append(clip.seconds["fetch"] / workers)
            computing.append((clip.seconds["encode"] + clip.seconds["flow"]) / workers)
            busy.append(sum(clip.core_seconds.values()) / cores)
        return max((self.a_clip(values) for values in (fetching, computing, busy)), key=lambda found: found.mean)


def estimate(plan: Plan, sample: int) -> Estimate:
    """Fetch, encode and give flow to up to `sample` of the plan's clips, one at a time, in a temporary folder.

    Nothing is written to the output or kept. Raises what a run's steps raise, but for errors of clips: those are
    measured.
    """
    forget_refusals()
    finished = plan.job.finished.keys() if plan.finished else set()
    due = [clip for clip in plan.clips if clip.key not in finished]
    backend = fastest_backend() if plan.job.specification.flow is not None else None
    if backend is not None and due:
        tvl1(np.zeros((2, 32, 32), np.uint8), backend=backend)  # compiles, which is no clip's cost
    found = list(islice(_of_archives(due, plan.job), sample))
    if not found:
        chosen = random.Random(SEED).sample(due, min(sample, len(due)))
        found = [_of_sources(clip, plan.job) for clip in chosen]
    return Estimate(len(due), backend, found)


def _of_archives(due: Sequence[Clip], job: Job) -> Iterator[Measured]:
    """The due clips of archives, as they come: to find others would be to read on."""
    wanted = {clip.key: clip for clip in due}
    with tempfile.TemporaryDirectory() as folder:
        for archive in chain.from_iterable(job.archives):
            members = read_archive(archive, Path(folder), wanted.__contains__)
            while True:
                measured = Measured()
                try:
                    with _timed(measured, "fetch"):
                        key, file, _ = next(members)
                except (StopIteration, ArchiveError):
                    break
                if file is not None:
                    _prepare(wanted[key], CutClip(file), Path(folder), job, measured)
                    file.unlink()
                    yield measured


def _of_sources(clip: Clip, job: Job) -> Measured:
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        downloads = Path(folder) / "download"
        downloads.mkdir()
        try:
            with _timed(measured, "fetch"):
                video = fetch(clip, job.sources, downloads, job.specification.rgb.short_side)
        except VideoError as error:
            measured.reason = error.reason
            return measured
        _prepare(clip, video, Path(folder), job, measured)
    return measured


def _prepare(clip: Clip, video: Video, folder: Path, job: Job, measured: Measured) -> None:
    """Prepare one clip as a run does, and note what it has cost instead of keeping it."""
    try:
        with _timed(measured, "encode"):
            rgb = encode(clip, video, folder, job)
        members = members_without_flow(clip, rgb, job)
        if job.specification.flow is not None:
            with _timed(measured, "flow"):
                members = add_flow(members, job.specification.flow, {})
        measured.stored_bytes = sum(map(len, members.values()))
    except VideoError as error:
        measured.reason = error.reason
    measured.fetched_bytes = _bytes_of(video)


def _bytes_of(video: Video) -> int:
    match video:
        case Path():
            return video.stat().st_size
        case CutClip():
            return video.file.stat().st_size
        case RemoteVideo():
            return video.downloaded_bytes
    return len(video.rgb)


@contextmanager
def _timed(measured: Measured, stage: str) -> Iterator[None]:
    started, used = time.monotonic(), _core_seconds()
    try:
        yield
    finally:
        measured.seconds[stage] = time.monotonic() - started
        measured.core_seconds[stage] = _core_seconds() - used


def _core_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    ours, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


def to_json(plan: Plan, found: Estimate, workers: int, cores: int) -> dict[str, Any]:
    """The plan and the estimate as JSON values: `rows` = the sum of the others; costs are those of all due clips.

    Args:
        plan: what is to be done.
        found: of the same plan.
        workers: clips worked on at a time on this machine.
        cores: of another machine, with as many workers.
    """
    listing = plan.listing
    published = len(listing.clips) - len(plan.clips) - plan.not_due.total() - plan.withdrawn
    own_cores = os.cpu_count() or 1
    machines = ((own_cores, workers), (cores, cores))
    return {
        "rows": listing.rows,
        "rejected": dict(sorted(Counter(row.reason for row in listing.rejected).items())),
        "published": published,
        "withdrawn": plan.withdrawn,
        "not_due": dict(sorted(plan.not_due.items())),
        "finished": plan.finished,
        "due": found.due,
        "sample": len(found.sample),
        "sample_failed": dict(sorted(Counter(clip.reason for clip in found.sample if clip.reason).items())),
        "flow_backend": found.backend,
        "a_clip": {name: cost._asdict() for name, cost in found.costs().items()} if found.sample else {},
        "all": {name: cost.times(found.due)._asdict() for name, cost in found.costs().items()} if found.sample else {},
        "wall_clock": [
            {"cores": n, "workers": w, "seconds": found.wall_seconds(w, n).times(found.due)._asdict()}
            for n, w in machines
            if found.sample
        ],
    }


def lines(values: Mapping[str, Any]) -> Iterator[str]:
    """What `to_json` gives, as text for people."""
    yield f"rows         {values['rows']:>9,}"
    yield f"  rejected   {sum(values['rejected'].values()):>9,}{_by_reason(values['rejected'])}"
    yield f"  published  {values['published']:>9,}"
    yield f"  taken down {values['withdrawn']:>9,}"
    yield f"  not due    {sum(values['not_due'].values()):>9,}{_by_reason(values['not_due'])}"
    yield f"  finished   {values['finished']:>9,}  (only their shards are to be written)"
    yield f"  due        {values['due']:>9,}"
    if not values["sample"]:
        return
    yield ""
    yield (
        f"Measured on {values['sample']} of the clips that are due, one at a time; "
        f"failed {sum(values['sample_failed'].values())}{_by_reason(values['sample_failed'])}"
    )
    if values["flow_backend"] == "cpu":
        yield "No GPU that computes flow was found here: flow was measured on the CPU"
    yield f"{'mean ± standard error':<22}{'a clip':>24}{'all that are due':>26}"
    for name, cost in values["a_clip"].items():
        show = size if name.startswith("bytes") else core_time
        yield f"{name.replace('-seconds', '-time'):<22}{_mean(cost, show):>24}{_mean(values['all'][name], show):>26}"
    yield ""
    for machine in values["wall_clock"]:
        name = f"wall-clock, {machine['cores']} cores, {machine['workers']} at a time"
        yield f"{name:<46}{_mean(machine['seconds'], duration):>26}"


def _by_reason(counts: Mapping[str, int]) -> str:
    return f"  ({', '.join(f'{reason} {number}' for reason, number in counts.items())})" if counts else ""


def _mean(value: Mapping[str, float | None], show: Callable[[float], str]) -> str:
    mean, error = value["mean"] or 0.0, value["error"]
    return f"{show(mean)} ± {'unknown' if error is None else show(error)}"
