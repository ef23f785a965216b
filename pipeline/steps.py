"""The steps of the pipeline as plain functions; `pipeline.prep` strings them together.

Data errors of a clip end as an `Outcome` with a reason; everything else (a full disk, a missing program, a bug) is
raised and ends the run. Whatever a step has finished lies under its final name and is found again by the next run.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from manifests.clip import Clip
from manifests.files import remove_folder
from manifests.index import Shard, Snapshot, read_snapshot
from manifests.sample import FLOW, RGB
from pipeline import generations, lease, progress, turns
from pipeline.archives import MAXIMUM_MEMBER_BYTES, ArchiveError, identity, note_contents, read_archive
from pipeline.fetch import CutClip, Video, fetch, reading
from pipeline.generations import SCRATCH
from pipeline.job import Job, TooManyFailures, scratch_folder, wanted_clips
from pipeline.ledger import Outcome, forget_notes, note_outcome, noted_outcome, record_outcomes
from pipeline.remote import RemoteVideo
from pipeline.samples import add_flow, members_without_flow, provenance, stored_counts, versions
from pipeline.shards import PlannedShard, plan_shards, write_shard
from pipeline.video import StoredRgb, VideoError, encode_rgb

CLIPS_OF_AN_ARCHIVE = os.cpu_count() or 1  # that are encoded while it is read on


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
    wanted = wanted_clips(job.plan, job.run)
    for last in (False, False, True):
        keys: set[str] = set()
        try:
            version = identity(archive)
            with scratch_folder(job) as folder, turns.to_fetch(), ThreadPoolExecutor(CLIPS_OF_AN_ARCHIVE) as pool:
                pending: set[Future[None]] = set()
                for key, file, size in read_archive(archive, folder, partial(_is_open, wanted, job, keys)):
                    lease.renew(job.output, job.lease)
                    if file is not None:
                        pending.add(pool.submit(_keep_member, wanted[key], file, job))
                    elif size > MAXIMUM_MEMBER_BYTES and _is_open(wanted, job, keys, key):
                        said = f"{size} bytes in {archive}, a clip has at most {MAXIMUM_MEMBER_BYTES}"
                        _failed(wanted[key], VideoError("too-large", said), job, {})
                    keys.add(key)
                    if len(pending) == 2 * CLIPS_OF_AN_ARCHIVE:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in pending:
                    future.result()
        except ArchiveError as error:
            if last:
                logging.getLogger(__name__).warning("%s", error)
                return [str(error)]
            time.sleep(1)
            continue
        note_contents(job.output, version, keys)
        break
    return []


def _is_open(wanted: dict[str, Clip], job: Job, seen: set[str], key: str) -> bool:
    return key in wanted and key not in seen and not _kept(wanted[key], job)


def _keep_member(clip: Clip, file: Path, job: Job) -> None:
    try:
        with scratch_folder(job) as folder:
            outcome = _encode_and_keep(clip, CutClip(file), folder, job, {})
        if outcome.reason is None:  # what failed is noted already
            note_outcome(job.output, outcome)
    finally:
        file.unlink()


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
        return noted if noted and not noted.reason else Outcome(clip, stored=stored_counts(kept))
    earlier = [_not_in_archives(noted, [problem for wave in archives for problem in wave])] if job.archives else []
    seconds: dict[str, float] = {}
    with scratch_folder(job) as folder:
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
        said = f"in no archive that could be read; {len(problems)} could not, the first: {problems[0]}"
        return VideoError("fetch-failed", said)
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
    return Outcome(clip, seconds=seconds, stored=stored_counts(members), versions=versions())


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
        return replace(outcome, stored=stored_counts(members))
    seconds = dict(outcome.seconds)
    try:
        with turns.to_compute(), timed(seconds, "flow"):
            members = add_flow(members, coding, seconds)
    except VideoError as error:  # of a dataset's sample, which others have encoded
        job.finished.discard(outcome.clip.key)
        return _failed(outcome.clip, error, job, seconds)
    job.finished.write(outcome.clip, members, complete=True)
    return replace(outcome, seconds=seconds, stored=stored_counts(members), versions=versions())


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
    if not lease.has_ended(job.output, job.lease):  # else this is done again, after a worker's crash
        lease.require(job.output, job.lease)
        before = read_snapshot(job.output)
        if before is None or int(before.name) < job.generation:  # else it crashed after this
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
