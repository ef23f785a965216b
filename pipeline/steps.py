"""The steps of the pipeline as plain functions; `pipeline.prep` strings them together.

Data errors of a clip end as an `Outcome` with a reason; everything else (a full disk, a missing program, a bug) is
raised and ends the run. Whatever a step has finished lies under its final name and is found again by the next run.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import av
import cv2
import numba

from flow import fastest_backend
from manifests.classes import ClassList
from manifests.clip import Clip
from manifests.files import canonical_json, in_bucket, names_in, remove_folder, write_file
from manifests.index import Shard, Snapshot, read_snapshot
from manifests.sample import CLASS, FLOW, FORMAT_VERSION, METADATA, RGB, FlowCoding, Specification
from pipeline import generations, lease, progress, turns
from pipeline.archives import ArchiveError, note_contents, read_archive
from pipeline.fetch import CutClip, Source, Video, fetch, reading
from pipeline.generations import SCRATCH, scratch_prefix
from pipeline.ledger import Outcome, forget_notes, note_outcome, noted_outcome, record_outcomes
from pipeline.process import ChildKilled, ChildTimeout, run_child
from pipeline.remote import RemoteVideo
from pipeline.shards import FinishedClips, PlannedShard, plan_shards, write_shard
from pipeline.video import StoredRgb, VideoError, encode_rgb, flow_of

CLIPS_IN_A_PART = 1000
CLIPS_OF_AN_ARCHIVE = os.cpu_count() or 1  # that are encoded while it is read on


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
    archives: tuple[tuple[str, ...], ...] = ()  # to read before any other source is asked, wave after wave
    run: str = ""  # tells runs apart that work on the same output; nothing that is stored depends on it
    lease: str | None = None  # who holds the output, where that is a bucket
    max_failures: int | None = None  # with more, a run that nobody waits for ends as failed, once it has published

    @property
    def finished(self) -> FinishedClips:
        """The finished clips of the run's specification."""
        return FinishedClips.of(self.output, self.specification)

    @property
    def scratch(self) -> Path:
        """Folder of this machine for what is being worked on; the next run here removes what is left in it."""
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
    return _clips(job.plan / part)


def _clips(part: Path) -> Iterator[Clip]:
    for line in part.read_bytes().splitlines():
        fields = json.loads(line)
        yield Clip(**{**fields, "memberships": tuple(fields["memberships"])})


def take_from_archive(archive: str, job: Job, *earlier_waves: Any) -> list[str]:
    """Encode the clips of an archive that the plan wants, and keep them; failures are noted.

    Args:
        archive: its path or URL.
        job: the run's.
        earlier_waves: what this gave for the archives that come before; their clips count first.

    Returns:
        What is wrong with the archive as a whole: nothing, or one message.
    """
    del earlier_waves  # that they are here means that those archives are through
    wanted = _wanted(job.plan, job.run)
    for last in (False, False, True):
        keys: list[str] = []
        try:
            with _scratch_folder(job) as folder, turns.to_fetch(), ThreadPoolExecutor(CLIPS_OF_AN_ARCHIVE) as pool:
                pending: set[Future[None]] = set()
                open_clips = partial(_is_open, wanted, job)
                for key, file in read_archive(archive, folder, open_clips):
                    keys.append(key)
                    if file is not None:
                        pending.add(pool.submit(_keep_member, wanted[key], file, job))
                    if len(pending) == 2 * CLIPS_OF_AN_ARCHIVE:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in pending:
                    future.result()
        except ArchiveError as error:
            if last:
                return [str(error)]
            continue
        note_contents(job.output, archive, keys)
        break
    return []


@lru_cache(maxsize=1)
def _wanted(plan: Path, run: str) -> dict[str, Clip]:
    """All clips of a run's plan: which of them an archive has is seen only while it is read."""
    del run  # that the plan of another run is not taken for this one's
    return {clip.key: clip for part in names_in(plan) for clip in _clips(plan / part)}


def _is_open(wanted: dict[str, Clip], job: Job, key: str) -> bool:
    return key in wanted and not _kept(wanted[key], job)


def _keep_member(clip: Clip, file: Path, job: Job) -> None:
    try:
        with _scratch_folder(job) as folder:
            outcome = _encode_and_keep(clip, CutClip(file), folder, job, {})
        if outcome.reason is None:  # what failed is noted already
            note_outcome(job.output, outcome)
    finally:
        file.unlink()


@contextmanager
def _scratch_folder(job: Job) -> Iterator[Path]:
    job.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=scratch_prefix(job.output)) as folder:
        yield Path(folder)


def fetch_and_encode(clip: Clip, job: Job, *archives: Any) -> Outcome:
    """Bring a clip's video here, cut and encode it, and keep it; a clip that is kept already is left as it is.

    Args:
        clip: what is wanted.
        job: the run's.
        archives: what `take_from_archive` gave for the job's archives, wave by wave.
    """
    lease.renew(job.output, job.lease)
    noted = noted_outcome(job.output, clip) if job.archives else None
    if kept := _kept(clip, job):
        return noted if noted and not noted.reason else Outcome(clip, stored=_stored(kept))
    earlier = [_not_in_archives(noted, [problem for wave in archives for problem in wave])] if job.archives else []
    seconds: dict[str, float] = {}
    with _scratch_folder(job) as folder:
        downloads = folder / "download"
        downloads.mkdir()
        try:
            with turns.to_fetch(), timed(seconds, "fetch"):
                video = fetch(clip, job.sources, downloads, job.specification.rgb.short_side, earlier)
        except VideoError as error:
            return _failed(clip, error, job, seconds)
        return _encode_and_keep(clip, video, folder, job, seconds)


def _not_in_archives(noted: Outcome | None, problems: list[str]) -> VideoError:
    """Why a clip was not found in archives, or not found well."""
    if noted and noted.reason:
        return VideoError(noted.reason, noted.message)
    if problems:
        return VideoError("fetch-failed", "in no archive that could be read; not read were: " + "; ".join(problems))
    return VideoError("missing", "in none of the archives")


def _kept(clip: Clip, job: Job) -> dict[str, bytes] | None:
    return job.finished.read(clip, complete=True) or job.finished.read(clip, complete=False)


def _failed(clip: Clip, error: VideoError, job: Job, seconds: dict[str, float]) -> Outcome:
    outcome = Outcome(clip, error.reason, error.message, seconds, versions=versions())
    note_outcome(job.output, outcome)
    return outcome


def _encode_and_keep(clip: Clip, video: Video, folder: Path, job: Job, seconds: dict[str, float]) -> Outcome:
    lease.renew(job.output, job.lease)
    try:
        with turns.to_compute(), timed(seconds, "encode"):
            rgb = encode(clip, video, folder, job)
    except VideoError as error:
        return _failed(clip, error, job, seconds)
    members = members_without_flow(clip, rgb, job)
    job.finished.write(clip, members, complete=job.specification.flow is None)
    return Outcome(clip, seconds=seconds, stored=_stored(members), versions=versions())


def members_without_flow(clip: Clip, rgb: StoredRgb, job: Job) -> dict[str, bytes]:
    """What is stored of a clip before its flow."""
    members = {RGB: rgb.content, METADATA: canonical_json(describe(clip, rgb, job.specification, job.classes))}
    if clip.label is not None:
        members[CLASS] = str(job.classes.index[clip.label]).encode()
    return members


def encode(clip: Clip, video: Video, folder: Path, job: Job) -> StoredRgb:
    """A clip's RGB as the specification wants it; from a dataset's sample as it is, where that was stored so."""
    coding = job.specification.rgb
    if isinstance(video, Path):
        return encode_rgb(video, folder / RGB, coding, clip.start_seconds, clip.end_seconds)
    if isinstance(video, CutClip):
        seconds = None if clip.end_seconds is None else clip.end_seconds - clip.start_seconds
        return encode_rgb(video.file, folder / RGB, coding, 0.0, seconds)
    if isinstance(video, RemoteVideo):
        with closing(video), reading(video):
            return encode_rgb(video.local_url, folder / RGB, coding, clip.start_seconds, clip.end_seconds)
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
    members = _kept(outcome.clip, job)
    if members is None:
        raise RuntimeError(f"{outcome.clip.key}: the encoded clip has gone from {job.finished.folder}")
    if FLOW in members:  # a bundle that is done again
        return replace(outcome, stored=_stored(members))
    seconds = dict(outcome.seconds)
    try:
        with turns.to_compute(), timed(seconds, "flow"):
            members = add_flow(members, coding, seconds)
    except VideoError as error:  # of a dataset's sample, which others have encoded
        job.finished.discard(outcome.clip.key)
        return _failed(outcome.clip, error, job, seconds)
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
    try:
        banner, _ = run_child(["ffmpeg", "-version"], deadline_seconds=60)
    except (ChildKilled, ChildTimeout):  # no reason to end the run
        banner = b""
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
        forget_notes(job.output)
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
        "memberships": list(clip.memberships),
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


def add_flow(members: dict[str, bytes], coding: FlowCoding, seconds: dict[str, float]) -> dict[str, bytes]:
    """Compute flow from a sample's stored RGB and give the sample with it: flow has one picture less than RGB.

    How long that had a GPU is noted in `seconds`.
    """
    backend = fastest_backend()
    flow = flow_of(members[RGB], coding, backend=backend, gpu=partial(turns.on_gpu, seconds))
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
