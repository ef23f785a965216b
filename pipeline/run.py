"""A run from its arguments to a published snapshot: what is to do, under a lease, on a Beam runner."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.classes import ClassList, read_classes
from manifests.clip import Clip
from manifests.files import canonical_json, remove_partial_files, write_file
from manifests.index import ROOT, Snapshot, published_keys, read_snapshot, root_json
from manifests.lease import lease
from manifests.lists import OWN_CLASSES, Listing, read_lists, reject_unknown_labels
from manifests.sample import FlowCoding, RgbCoding, Specification, differences
from pipeline.fetch import FolderSource, Source
from pipeline.ledger import record_rejected
from pipeline.prep import prepare
from pipeline.progress import shown_progress
from pipeline.shards import SHARD_NAME
from pipeline.steps import SCRATCH, Job

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


def run(
    manifests: Iterable[Path],
    source: Source,
    output: Path,
    *,
    flow: FlowCoding | None,
    short_side: int = 256,
    classes: str | None = None,
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
        adopt_unfinished_snapshot(output)
        plan = make_plan(manifests, source, output, flow=flow, short_side=short_side, classes=classes)
        _clean(output)
        record_rejected(output, plan.listing)
        if plan.clips:
            with shown_progress(len(plan.clips)), beam.Pipeline(options=options) as pipeline:
                prepare(pipeline, plan.clips, plan.job)
        shutil.rmtree(plan.job.scratch, ignore_errors=True)
    return plan


def make_plan(
    manifests: Iterable[Path],
    source: Source,
    output: Path,
    *,
    flow: FlowCoding | None,
    short_side: int = 256,
    classes: str | None = None,
) -> Plan:
    """Read the lists and say what a run will do; nothing is written. Raises as `run` does, but for the lease."""
    _check_short_side(short_side)
    snapshot = read_snapshot(output)
    listing = read_lists(manifests, Path(source.folder) if isinstance(source, FolderSource) else None)
    class_list = _class_list(listing, classes, snapshot)
    listing = reject_unknown_labels(listing, class_list)
    specification = Specification(
        classes_name=class_list.name,
        classes_sha256=class_list.sha256,
        rgb=RgbCoding(short_side=short_side),
        flow=flow,
    )
    if snapshot is not None:
        _require_same_specification(snapshot, specification, output)
    published = set(published_keys(output, snapshot)) if snapshot else set()
    clips = [clip for clip in listing.clips if clip.key not in published]
    generation = 1 + (int(snapshot.name) if snapshot else 0)
    job = Job(output, source, specification, class_list, generation, snapshot.name if snapshot else None)
    return Plan(listing, clips, job)


def _check_short_side(short_side: int) -> None:
    if short_side not in SHORT_SIDES:
        raise ValueError(
            f"short side {short_side}: must be an even number of pixels from {SHORT_SIDES[0]} to {SHORT_SIDES[-1]}"
        )


def _class_list(listing: Listing, classes: str | None, snapshot: Snapshot | None) -> ClassList:
    """The list asked for, else the dataset's, else Kinetics' for its lists and the labels for lists of one's own."""
    if classes is not None:
        return read_classes(classes)
    if snapshot is not None:
        return snapshot.classes
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


def adopt_unfinished_snapshot(output: Path) -> None:
    """Make the newest snapshot the current one where its run was killed before it could say so, or the root was lost.

    Only a snapshot whose shards are all there: it was complete, all but the root.
    """
    current = read_snapshot(output)
    names = sorted(path.parent.name for path in (output / "snapshots").glob("*/snapshot.json"))
    if not names or (current is not None and names[-1] <= current.name):
        return
    newest = read_snapshot(output, names[-1])
    assert newest is not None  # it was asked for by its name
    paths = [(output / shard.path, shard.bytes) for shard in newest.shards]
    if all(path.exists() and path.stat().st_size == size for path, size in paths):
        write_file(output / ROOT, canonical_json(root_json(newest)))


def _clean(output: Path) -> None:
    """Remove what a killed run left: scratch, half-written files, shards that no snapshot names."""
    shutil.rmtree(output / SCRATCH, ignore_errors=True)
    remove_partial_files(output)
    for pattern in ("ledger", "clips/*", "shards/*", "snapshots/*"):
        for folder in output.glob(pattern):
            remove_partial_files(folder)
    named = set()
    for folder in sorted((output / "snapshots").glob("*")):
        snapshot = read_snapshot(output, folder.name) if (folder / "snapshot.json").exists() else None
        for shard in snapshot.shards if snapshot else ():
            named |= {output / shard.path, output / shard.index_path}
    for file in (output / "shards").glob("*/*"):
        if SHARD_NAME.fullmatch(file.name) and file not in named:
            file.unlink()
