"""A run from its arguments to a published snapshot: what is to do, under a lease, on a Beam runner."""

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.classes import ClassList, read_classes
from manifests.clip import Clip
from manifests.index import Snapshot, published_keys, read_snapshot
from manifests.lease import lease
from manifests.lists import OWN_CLASSES, ListError, Listing, read_lists, reject_unknown_labels
from manifests.sample import FlowCoding, RgbCoding, Specification, differences
from pipeline.fetch import FolderSource, Source, forget_refusals
from pipeline.generations import finish_interrupted
from pipeline.ledger import WITHDRAWN, is_due, read_ledger, record_rejected
from pipeline.prep import prepare
from pipeline.progress import shown_progress
from pipeline.steps import Job
from pipeline.stored import DatasetSource, listing_of, snapshot_of

KINETICS_CLASSES = "kinetics400"
SHORT_SIDES = range(32, 1081, 2)


class SpecificationChanged(ValueError):
    """The output holds a dataset of another specification."""


@dataclass(frozen=True)
class Plan:
    """What a run will do: the listing, the clips that are not published yet, and the job."""

    listing: Listing
    clips: list[Clip]
    job: Job
    not_due: int  # clips that failed for good and that nobody asked to try again
    withdrawn: int  # clips that were taken down


def run(
    manifests: Iterable[Path],
    sources: Sequence[Source],
    output: Path,
    *,
    flow: FlowCoding | None,
    short_side: int = 256,
    classes: str | None = None,
    retry: Collection[str] = (),
    options: PipelineOptions,
) -> Plan:
    """Prepare every clip of the lists that is not published yet and publish what came out well.

    Returns:
        What was planned; what became of it stands in the ledger.

    Raises:
        ListError, ValueError: a list, class list or size that cannot be used.
        LeaseHeld: another run works on the output.
        SpecificationChanged: the output holds a dataset of another specification.
    """
    output = output.resolve()
    _check_short_side(short_side)
    if classes is not None:
        read_classes(classes)  # before anything is made
    with lease(output):
        finish_interrupted(output)
        forget_refusals()
        plan = make_plan(manifests, sources, output, flow=flow, short_side=short_side, classes=classes, retry=retry)
        record_rejected(output, plan.listing)
        if plan.clips:
            with shown_progress(len(plan.clips)), beam.Pipeline(options=options) as pipeline:
                prepare(pipeline, plan.clips, plan.job)
        shutil.rmtree(plan.job.scratch, ignore_errors=True)
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
    folders = [Path(source.folder) for source in sources if isinstance(source, FolderSource)]
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
    published, ledger = set(published_keys(output, snapshot)) if snapshot else set(), read_ledger(output)
    unpublished = [clip for clip in listing.clips if clip.key not in published]
    generation = 1 + (int(snapshot.name) if snapshot else 0)
    job = Job(output, tuple(sources), specification, class_list, generation, snapshot.name if snapshot else None)
    withdrawn = {key for key, entry in ledger.items() if entry["reason"] == WITHDRAWN}
    open_clips = [clip for clip in unpublished if clip.key not in withdrawn]
    # A finished clip whose run was killed before its ledger said so is due whatever that says.
    clips = [clip for clip in open_clips if is_due(ledger.get(clip.key), retry) or job.finished.has(clip.key)]
    return Plan(listing, clips, job, not_due=len(open_clips) - len(clips), withdrawn=len(unpublished) - len(open_clips))


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
