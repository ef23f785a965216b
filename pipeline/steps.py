"""The steps of the pipeline as plain functions; `pipeline.prep` strings them together.

Data errors of a clip end as an `Outcome` with a reason; everything else (a full disk, a missing program, a bug) is
raised and ends the run. Whatever a step has finished lies under its final name and is found again by the next run.
"""

import hashlib
import importlib.metadata
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numba

from flow import fastest_backend
from manifests.classes import ClassList
from manifests.clip import Clip
from manifests.files import canonical_json, in_bucket, remove_folder, write_file
from manifests.index import Shard, Snapshot, read_snapshot
from manifests.sample import CLASS, FLOW, FORMAT_VERSION, METADATA, RGB, FlowCoding, Specification
from pipeline import generations, lease, progress, turns
from pipeline.fetch import Source, fetch
from pipeline.generations import SCRATCH
from pipeline.ledger import Outcome, forget_failures, note_failure, record_outcomes
from pipeline.process import run_child
from pipeline.shards import FinishedClips, PlannedShard, plan_shards, write_shard
from pipeline.stored import StoredSample
from pipeline.video import StoredRgb, VideoError, encode_rgb, flow_of

CLIPS_IN_A_PART = 1000


class TooManyFailures(RuntimeError):
    """More clips of a run failed than it was to bear."""

    def __init__(self, failed: int, allowed: int) -> None:
        super().__init__(f"{failed} clips of this run failed, more than --max-failures {allowed}")


@dataclass(frozen=True)
class Job:
    """What one run does, the same for every clip: where from, where to, and what the bytes shall be."""

    output: Path
    sources: tuple[Source, ...]
    specification: Specification
    classes: ClassList
    generation: int
    parent: str | None
    lease: str | None = None  # who holds the output, where that is a bucket
    max_failures: int | None = None  # with more, a run that nobody waits for ends as failed, once it has published

    @property
    def finished(self) -> FinishedClips:
        """The finished clips of the run's specification."""
        return FinishedClips.of(self.output, self.specification)

    @property
    def scratch(self) -> Path:
        """Folder of this machine for what is being worked on; that of an output here is emptied by the next run."""
        return Path(tempfile.gettempdir()) if in_bucket(self.output) else self.output / SCRATCH

    @property
    def plan(self) -> Path:
        """Folder of the clips to work on, in parts."""
        return self.output / SCRATCH / "plan"


def write_plan(clips: list[Clip], job: Job) -> list[str]:
    """Write down what is to be done, in parts, and give the parts' names.

    A list of clips inside the job would be too much for what runs it: Dataflow takes 10 MB, a few ten thousand clips.
    """
    parts = []
    for number, start in enumerate(range(0, len(clips), CLIPS_IN_A_PART)):
        parts.append(f"{number:06d}.jsonl")
        part = (json.dumps(asdict(clip)) + "\n" for clip in clips[start : start + CLIPS_IN_A_PART])
        write_file(job.plan / parts[-1], "".join(part).encode())
    return parts


def read_part(part: str, job: Job) -> Iterator[Clip]:
    """The clips of one part of the plan."""
    for line in (job.plan / part).read_bytes().splitlines():
        yield Clip(**json.loads(line))


def fetch_and_encode(clip: Clip, job: Job) -> Outcome:
    """Bring a clip's video here, cut and encode it, and keep it; a clip that is kept already is left as it is."""
    lease.renew(job.output, job.lease)
    kept = job.finished.read(clip, complete=True) or job.finished.read(clip, complete=False)
    if kept:
        return Outcome(clip, stored=_stored(kept))
    seconds: dict[str, float] = {}
    job.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder:
        try:
            downloads = Path(folder) / "download"
            downloads.mkdir()
            with turns.to_fetch(), timed(seconds, "fetch"):
                video = fetch(clip, job.sources, downloads, job.specification.rgb.short_side)
            with turns.to_compute(), timed(seconds, "encode"):
                rgb = encode(clip, video, Path(folder), job)
        except VideoError as error:
            outcome = Outcome(clip, error.reason, error.message, seconds, versions=versions())
            note_failure(job.output, outcome)
            return outcome
    members = members_without_flow(clip, rgb, job)
    job.finished.write(clip, members, complete=job.specification.flow is None)
    return Outcome(clip, seconds=seconds, stored=_stored(members), versions=versions())


def members_without_flow(clip: Clip, rgb: StoredRgb, job: Job) -> dict[str, bytes]:
    """What is stored of a clip before its flow."""
    members = {RGB: rgb.content, METADATA: canonical_json(describe(clip, rgb, job.specification, job.classes))}
    if clip.label is not None:
        members[CLASS] = str(job.classes.index[clip.label]).encode()
    return members


def encode(clip: Clip, video: Path | StoredSample, folder: Path, job: Job) -> StoredRgb:
    """A clip's RGB as the specification wants it; from a dataset's sample as it is, where that was stored so."""
    coding = job.specification.rgb
    if isinstance(video, Path):
        return encode_rgb(video, folder / RGB, coding, clip.start_seconds, clip.end_seconds)
    if video.coding == coding:
        return video.as_it_is()
    stored = folder / "stored.mp4"
    stored.write_bytes(video.rgb)
    return video.after(encode_rgb(stored, folder / RGB, coding))


def compute_flow(outcome: Outcome, job: Job) -> Outcome:
    """Add flow to a clip that came out well, from its decoded stored frames, and keep it as finished."""
    outcome = _with_flow(outcome, job)
    progress.count(outcome.reason, found=outcome.reason is None and not outcome.seconds)
    return outcome


def _with_flow(outcome: Outcome, job: Job) -> Outcome:
    lease.renew(job.output, job.lease)
    coding = job.specification.flow
    if outcome.reason is not None or coding is None or outcome.stored["flow_bytes"]:
        return outcome
    members = job.finished.read(outcome.clip, complete=True) or job.finished.read(outcome.clip, complete=False)
    if members is None:
        raise RuntimeError(f"{outcome.clip.key}: the encoded clip has gone from {job.finished.folder}")
    if FLOW in members:  # a bundle that is done again
        return replace(outcome, stored=_stored(members))
    seconds = dict(outcome.seconds)
    try:
        with turns.to_compute(), timed(seconds, "flow"):
            members = add_flow(members, coding)
    except VideoError as error:  # of a dataset's sample, which others have encoded
        job.finished.discard(outcome.clip.key)
        outcome = Outcome(outcome.clip, error.reason, error.message, seconds, versions=versions())
        note_failure(job.output, outcome)
        return outcome
    job.finished.write(outcome.clip, members, complete=True)
    return replace(outcome, seconds=seconds, stored=_stored(members), versions=versions())


def _stored(members: dict[str, bytes]) -> dict[str, int]:
    """What the ledger says of a finished clip."""
    rgb = json.loads(members[METADATA])["rgb"]
    counts = {name: rgb[name] for name in ("frames", "duplicated", "dropped")}
    return {**counts, "rgb_bytes": len(members[RGB]), "flow_bytes": len(members.get(FLOW, b""))}


@cache
def versions() -> dict[str, str]:
    """Of the programs that decide what becomes of a clip, on this machine."""
    banner, _ = run_child(["ffmpeg", "-version"], deadline_seconds=60)
    found = re.match(rb"ffmpeg version (\S+)", banner)
    return {
        "ffmpeg": found[1].decode(errors="replace") if found else "unknown",
        "yt-dlp": importlib.metadata.version("yt-dlp"),
        "quo-vadis-rebuilt": importlib.metadata.version("quo-vadis-rebuilt"),
    }


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note in `seconds` how long the block took, and for the display that it is in work."""
    started = time.monotonic()
    try:
        with progress.working(stage):
            yield
    finally:
        seconds[stage] = time.monotonic() - started


def cut_into_shards(job: Job, outcomes: Iterable[Outcome]) -> list[PlannedShard]:
    """Plan the shards of the run's generation: of all clips that came out well."""
    clips = (outcome.clip for outcome in outcomes if outcome.reason is None)
    planned = plan_shards(clips, job.generation, job.specification)
    progress.count_shards(len(planned))
    return planned


def build_shard(planned: PlannedShard, job: Job) -> Shard:
    """Write one shard of the generation."""
    lease.renew(job.output, job.lease)
    with progress.working("shards"):
        return write_shard(planned, job.finished.members, job.output)


def finish(job: Job, outcomes: Iterable[Outcome], shards: Iterable[Shard]) -> None:
    """Record what became of the clips, publish the shards, and end the lease.

    Raises:
        LeaseLost: another run works on the output by now.
        TooManyFailures: more than the job's `max_failures`, where that is said; what came out well is published.
    """
    before = read_snapshot(job.output)
    if before is None or int(before.name) < job.generation:  # else this is done again, after a worker's crash
        lease.require(job.output, job.lease)
        record_outcomes(job.output, outcomes)
        forget_failures(job.output)
        publish(list(shards), job)
    remove_folder(job.output / SCRATCH)
    lease.release(job.output, job.lease)
    failed = sum(outcome.reason is not None for outcome in outcomes)
    if job.max_failures is not None and failed > job.max_failures:
        raise TooManyFailures(failed, job.max_failures)


def publish(shards: list[Shard], job: Job) -> None:
    """Publish a snapshot with the generation's shards added. No shards, no snapshot."""
    if not shards:
        return
    parent = read_snapshot(job.output, job.parent) if job.parent else None
    earlier = parent.shards if parent else ()
    generation = Snapshot(
        name=f"{job.generation:04d}",
        parent=job.parent,
        specification=job.specification,
        classes=job.classes,
        shards=(*earlier, *sorted(shards, key=lambda shard: shard.path)),
        provenance=(*(parent.provenance if parent else ()), provenance(job.specification)),
    )
    generations.publish(job.output, generation)


def provenance(specification: Specification) -> dict[str, str]:
    """What made a generation: backends and versions, which the specification leaves open."""
    made_by = {"pyav": av.__version__}
    if specification.flow is not None:
        made_by |= {"flow_backend": fastest_backend(), "opencv": cv2.__version__, "numba": numba.__version__}
    return made_by


def describe(clip: Clip, rgb: StoredRgb, specification: Specification, classes: ClassList) -> dict[str, Any]:
    """The metadata of a sample that has no flow yet: a pure function of the clip and its stored bytes."""
    return {
        "format_version": FORMAT_VERSION,
        "key": clip.key,
        "source": {
            "origin": clip.origin,
            "video": clip.video,
            "width": rgb.source.width,
            "height": rgb.source.height,
            "frame_rate": str(rgb.source.frame_rate),
        },
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "duration_seconds": rgb.frames / specification.rgb.frame_rate,
        "label": clip.label,
        "class_index": None if clip.label is None else classes.index[clip.label],
        "classes": {"name": classes.name, "sha256": classes.sha256},
        "split": clip.split,
        "rgb": {
            "frames": rgb.frames,
            "width": rgb.width,
            "height": rgb.height,
            "frame_rate": specification.rgb.frame_rate,
            "duplicated": rgb.duplicated,
            "dropped": rgb.dropped,
            "sha256": hashlib.sha256(rgb.content).hexdigest(),
        },
        "flow": None,
    }


def add_flow(members: dict[str, bytes], coding: FlowCoding) -> dict[str, bytes]:
    """Compute flow from a sample's stored RGB and give the sample with it: flow has one picture less than RGB."""
    backend = fastest_backend()
    flow = flow_of(members[RGB], coding, backend=backend)
    metadata = json.loads(members[METADATA])
    if flow.frames != metadata["rgb"]["frames"] - 1:
        raise RuntimeError(f"{metadata['key']}: {flow.frames} flows of {metadata['rgb']['frames']} frames")
    metadata["flow"] = {
        "frames": flow.frames,
        "width": flow.width,
        "height": flow.height,
        "bound_pixels": coding.bound_pixels,
        "variant": coding.variant,
        "variant_version": coding.variant_version,
        "parameters": coding.parameters,
        "backend": backend,
        "sha256": hashlib.sha256(flow.content).hexdigest(),
    }
    return {**members, FLOW: flow.content, METADATA: canonical_json(metadata)}
