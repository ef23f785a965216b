"""The steps of the pipeline as plain functions; `pipeline.prep` strings them together.

Data errors of a clip end as an `Outcome` with a reason; everything else (a full disk, a missing program, a bug) is
raised and ends the run. Whatever a step has finished lies under its final name and is found again by the next run.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numba

from flow import fastest_backend
from manifests.classes import ClassList
from manifests.clip import Clip
from manifests.files import canonical_json
from manifests.index import Shard, Snapshot, read_snapshot
from manifests.sample import CLASS, FLOW, FORMAT_VERSION, METADATA, RGB, FlowCoding, Specification
from pipeline import generations, progress, turns
from pipeline.fetch import Source, Video, fetch, reading
from pipeline.generations import SCRATCH
from pipeline.ledger import Outcome, forget_failures, note_failure, record_outcomes
from pipeline.remote import RemoteVideo
from pipeline.shards import FinishedClips, PlannedShard, plan_shards, write_shard
from pipeline.video import StoredRgb, VideoError, encode_rgb, flow_of


@dataclass(frozen=True)
class Job:
    """What one run does, the same for every clip: where from, where to, and what the bytes shall be."""

    output: Path
    sources: tuple[Source, ...]
    specification: Specification
    classes: ClassList
    generation: int
    parent: str | None

    @property
    def finished(self) -> FinishedClips:
        """The finished clips of the run's specification."""
        return FinishedClips.of(self.output, self.specification)

    @property
    def scratch(self) -> Path:
        """Folder for what is being worked on; emptied by the next run."""
        return self.output / SCRATCH


def fetch_and_encode(clip: Clip, job: Job) -> Outcome:
    """Bring a clip's video here, cut and encode it, and keep it; a clip that is kept already is left as it is."""
    if job.finished.read(clip, complete=True) or job.finished.read(clip, complete=False):
        return Outcome(clip)
    seconds: dict[str, float] = {}
    job.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder, ExitStack() as opened:
        try:
            downloads = Path(folder) / "download"
            downloads.mkdir()
            with turns.to_fetch(), timed(seconds, "fetch"):
                video = fetch(clip, job.sources, downloads, job.specification.rgb.short_side)
            if isinstance(video, RemoteVideo):
                opened.enter_context(closing(video))
            with turns.to_compute(), timed(seconds, "encode"):
                rgb = _encode(clip, video, Path(folder), job)
        except VideoError as error:
            outcome = Outcome(clip, error.reason, error.message, seconds)
            note_failure(job.output, outcome)
            return outcome
    members = {RGB: rgb.content, METADATA: canonical_json(describe(clip, rgb, job.specification, job.classes))}
    if clip.label is not None:
        members[CLASS] = str(job.classes.index[clip.label]).encode()
    job.finished.write(clip, members, complete=job.specification.flow is None)
    return Outcome(clip, seconds=seconds)


def _encode(clip: Clip, video: Video, folder: Path, job: Job) -> StoredRgb:
    """A clip's RGB as the specification wants it; from a dataset's sample as it is, where that was stored so."""
    coding = job.specification.rgb
    if isinstance(video, Path):
        return encode_rgb(video, folder / RGB, coding, clip.start_seconds, clip.end_seconds)
    if isinstance(video, RemoteVideo):
        with reading(video):
            return encode_rgb(video.local_url, folder / RGB, coding, clip.start_seconds, clip.end_seconds)
    if video.coding == coding:
        return video.as_it_is()
    stored = folder / "stored.mp4"
    stored.write_bytes(video.rgb)
    return video.after(encode_rgb(stored, folder / RGB, coding))


def compute_flow(outcome: Outcome, job: Job) -> Outcome:
    """Add flow to a clip that came out well, from its decoded stored frames, and keep it as finished."""
    outcome = _with_flow(outcome, job)
    progress.count(outcome.reason)
    return outcome


def _with_flow(outcome: Outcome, job: Job) -> Outcome:
    coding = job.specification.flow
    if outcome.reason is not None or coding is None or job.finished.read(outcome.clip, complete=True):
        return outcome
    members = job.finished.read(outcome.clip, complete=False)
    if members is None:
        raise RuntimeError(f"{outcome.clip.key}: the encoded clip has gone from {job.finished.folder}")
    seconds = dict(outcome.seconds)
    try:
        with turns.to_compute(), timed(seconds, "flow"):
            members = add_flow(members, coding)
    except VideoError as error:  # of a dataset's sample, which others have encoded
        job.finished.discard(outcome.clip.key)
        outcome = Outcome(outcome.clip, error.reason, error.message, seconds)
        note_failure(job.output, outcome)
        return outcome
    job.finished.write(outcome.clip, members, complete=True)
    return Outcome(outcome.clip, seconds=seconds)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note in `seconds` how long the block took."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = time.monotonic() - started


def write_ledger(outcomes: list[Outcome], job: Job) -> list[Clip]:
    """Record what became of the clips; gives the clips that came out well."""
    record_outcomes(job.output, outcomes)
    forget_failures(job.output)
    return [outcome.clip for outcome in outcomes if outcome.reason is None]


def cut_into_shards(clips: list[Clip], job: Job) -> list[PlannedShard]:
    """Plan the shards of the run's generation."""
    return plan_shards(clips, job.generation, job.specification)


def build_shard(planned: PlannedShard, job: Job) -> Shard:
    """Write one shard of the generation."""
    return write_shard(planned, job.finished.members, job.output)


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
