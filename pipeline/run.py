"""A run from its arguments to a published snapshot: what is to do, under a lease, on a Beam runner."""

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from manifests.classes import ClassList, read_classes
from manifests.clip import Clip
from manifests.files import in_bucket
from manifests.index import Snapshot, published_keys, read_snapshot
from manifests.lists import OWN_CLASSES, ListError, Listing, read_lists, reject_unknown_labels
from manifests.sample import SHORT_SIDES, FlowCoding, RgbCoding, Specification, differences
from manifests.storage import open_path
from pipeline.archives import ArchiveSource, to_read
from pipeline.fetch import FolderSource, Source, UrlSource, forget_refusals
from pipeline.generations import finish_interrupted
from pipeline.job import Job, write_plan
from pipeline.lease import run_lease
from pipeline.ledger import WITHDRAWN, is_due, read_reasons, record_rejected
from pipeline.prep import prepare
from pipeline.progress import shown_progress
from pipeline.runners import DATAFLOW, is_dataflow
from pipeline.stored import DatasetSource, listing_of, snapshot_of

KINETICS_CLASSES = "kinetics400"


class SpecificationChanged(ValueError):
    """The output holds a dataset of another specification."""


@dataclass(frozen=True)
class Plan:
    """What a run will do: the listing, the clips that are not published yet, and the job."""

    listing: Listing
    clips: list[Clip]
    job: Job
    finished: int  # of the clips: an earlier run has left them finished, only their shards are to be written
    not_due: Counter[str]  # by reason: clips that failed for good and that nobody asked to try again
    withdrawn: int  # clips that were taken down
    submitted: bool = False  # the job goes on elsewhere


def run(
    manifests: Iterable[Path],
    sources: Sequence[Source],
    output: Path,
    *,
    flow: FlowCoding | None,
    short_side: int = 256,
    classes: str | None = None,
    retry: Collection[str] = (),
    max_failures: int | None = None,
    flow_hints: Mapping[str, str] | None = None,
    options: PipelineOptions,
    announce: Callable[[Plan], None] | None = None,
) -> Plan:
    """Prepare every clip of the lists that is not published yet and publish what came out well.

    On Dataflow the job is submitted and left alone: it publishes, ends the lease, and ends as failed where more than
    `max_failures` clips failed. Other runners are waited for.

    Args:
        manifests: the lists.
        sources: where videos come from.
        output: the dataset's folder.
        flow: how flow is made and stored; None for RGB only.
        short_side: of the stored pictures, in pixels.
        classes: name or file of the class list; None for what fits the dataset or the lists.
        retry: reasons to try again though they are permanent.
        max_failures: see above.
        flow_hints: Beam's resource hints for the step that computes flow.
        options: Beam's.
        announce: is told the plan before the work begins, and may raise.

    Returns:
        What was planned; what became of it stands in the ledger.

    Raises:
        ListError, ValueError: a list, class list or size that cannot be used.
        LeaseHeld: another run works on the output.
        SpecificationChanged: the output holds a dataset of another specification.
    """
    _check_short_side(short_side)
    remote = is_dataflow(options.view_as(StandardOptions).runner)
    if remote and not in_bucket(output):
        raise ValueError(f"{DATAFLOW} wants an output in a bucket, gs://…, which its machines reach, not {output}")
    for source in sources if remote else ():
        _require_reach(source)
    if classes is not None:
        read_classes(classes)  # before anything is made
    with run_lease(output) as held:
        finish_interrupted(output)
        forget_refusals()
        plan = make_plan(manifests, sources, output, flow=flow, short_side=short_side, classes=classes, retry=retry)
        if announce:
            announce(plan)
        record_rejected(output, plan.listing)
        if not plan.clips:
            return plan
        own = next((clip.folder for clip in plan.clips if clip.origin == "file" and "://" not in clip.folder), None)
        if remote and own is not None:
            raise ValueError(f"{DATAFLOW} wants videos that its machines reach, not those below {own}")
        judged = max_failures if remote else None  # else by whoever waits
        job = replace(plan.job, run=secrets.token_hex(8), lease=held.holder, max_failures=judged)
        pipeline = beam.Pipeline(options=options)
        Path(pipeline.local_tempdir).rmdir()  # for transforms in other languages; a killed run would leave it for good
        prepare(pipeline, write_plan(plan.clips, job), job, flow_hints or {})
        if remote:
            pipeline.run()
            held.handed_over = True
            return replace(plan, submitted=True)
        with shown_progress(len(plan.clips), plan.finished):
            pipeline.run().wait_until_finish()
    return plan


def make_plan(
    manifests: Iterable[Path],
    sources: Sequence[Source],
    output: Path,
    *,
    flow: FlowCoding | None,
    short_side: int = 256,
    classes: str | None = None,
    retry: Collection[str] = (),
) -> Plan:
    """Read the lists and say what a run will do; nothing is written. Raises as `run` does, but for the lease."""
    _check_short_side(short_side)
    snapshot = read_snapshot(output)
    folders = [open_path(source.folder) for source in sources if isinstance(source, FolderSource)]
    datasets, lists = [source for source in sources if isinstance(source, DatasetSource)], list(manifests)
    if not lists and not datasets:
        raise ListError("no list: name one with --manifest, or a dataset with --source dataset:DIR")
    listing = read_lists(lists, folders[0] if folders else None) if lists else listing_of(datasets)
    known = snapshot or (snapshot_of(datasets[0]) if datasets else None)
    class_list = _class_list(listing, classes, known)
    listing = reject_unknown_labels(listing, class_list)
    specification = Specification(
        classes_name=class_list.name,
        classes_sha256=class_list.sha256,
        rgb=RgbCoding(short_side=short_side),
        flow=flow,
    )
    if snapshot is not None:
        _require_same_specification(snapshot, specification, output)
    published, reasons = set(published_keys(output, snapshot)) if snapshot else set(), read_reasons(output)
    unpublished = [clip for clip in listing.clips if clip.key not in published]
    generation = 1 + (int(snapshot.name) if snapshot else 0)
    asked = tuple(source for source in sources if not isinstance(source, ArchiveSource))
    job = Job(output, asked, specification, class_list, generation, snapshot.name if snapshot else None)
    open_clips = [clip for clip in unpublished if reasons.get(clip.key) != WITHDRAWN]
    # A finished clip whose run was killed before its ledger said so is due whatever that says.
    finished = job.finished.keys()
    clips = [clip for clip in open_clips if is_due(reasons.get(clip.key), retry) or clip.key in finished]
    due = {clip.key for clip in clips}
    archives = [to_read(output, source, due) for source in sources if isinstance(source, ArchiveSource)]
    return Plan(
        listing,
        clips,
        replace(job, archives=tuple(wave for waves in archives for wave in waves)),
        finished=len(due & finished),
        not_due=Counter(reason for clip in open_clips if clip.key not in due and (reason := reasons[clip.key])),
        withdrawn=len(unpublished) - len(open_clips),
    )


def _require_reach(source: Source) -> None:
    """Raise `ValueError` for a source that only this machine has, or whose secrets a job would carry."""
    if isinstance(source, UrlSource):
        if source.cookies:
            raise ValueError(f"{DATAFLOW}: a file of cookies, {source.cookies}, is not on its machines")
        if any("@" in proxy for proxy in source.proxies):
            raise ValueError(f"{DATAFLOW}: a proxy's password would be stored with the job")
        return
    places = (
        [archive for wave in source.waves for archive in wave] if isinstance(source, ArchiveSource) else [source.folder]
    )
    here = next((place for place in places if "://" not in place), None)
    if here is not None:
        raise ValueError(f"{DATAFLOW} wants sources that its machines reach, not {here}")


def _check_short_side(short_side: int) -> None:
    if short_side not in SHORT_SIDES:
        raise ValueError(
            f"short side {short_side}: must be an even number of pixels from {SHORT_SIDES[0]} to {SHORT_SIDES[-1]}"
        )


def _class_list(listing: Listing, classes: str | None, snapshot: Snapshot | None) -> ClassList:
    """The list asked for, else the dataset's, else that of UCF-101, HMDB-51 or Kinetics, or the labels of own lists."""
    if classes is not None:
        return read_classes(classes)
    if snapshot is not None:
        return snapshot.classes
    if listing.classes:
        if len(listing.names) > 1:
            names = ", ".join(listing.names)
            raise ValueError(f"lists ({names}) that bring classes of their own: say with --classes whose classes count")
        return listing.classes[0]
    own_labels = sorted({clip.label for clip in listing.clips if clip.origin == "file" and clip.label is not None})
    if not own_labels:
        return read_classes(KINETICS_CLASSES)
    if any(clip.origin != "file" for clip in listing.clips):
        raise ValueError("lists of Kinetics and lists of one's own together: say with --classes whose classes count")
    return ClassList(OWN_CLASSES, tuple(own_labels))


def _require_same_specification(snapshot: Snapshot, specification: Specification, output: Path) -> None:
    changed = differences(snapshot.specification.to_json(), specification.to_json())
    if changed:
        raise SpecificationChanged(
            f"{output} holds a dataset of another specification ({'; '.join(changed)}): "
            "give the options it was made with, or another --output"
        )
