"""Samples of a dataset as sources of another one: other flow, another size or coding, flow where there was none.

Their videos are cut already. Where RGB is to be stored in the same way its bytes are taken as they are.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from manifests.clip import Clip, file_clip, youtube_clip
from manifests.index import (
    MAXIMUM_METADATA_BYTES,
    Shard,
    Snapshot,
    read_index,
    read_members,
    read_metadata,
    read_snapshot,
)
from manifests.lists import Listing
from manifests.sample import METADATA, MINIMUM_FRAMES, RGB, FormatError, RgbCoding
from manifests.storage import open_output
from pipeline.video import SourceVideo, StoredRgb, VideoError, stored_shape

PREFIX = "dataset:"
RATE = re.compile(r"[0-9]{1,9}(/0*[1-9][0-9]{0,8})?")


@dataclass(frozen=True)
class DatasetSource:
    """A snapshot of a dataset, `dataset:DIR` or `dataset:DIR@0003`."""

    folder: str
    snapshot: str

    @property
    def place(self) -> Path:
        """The folder as a path, which may be one of a bucket."""
        return open_output(self.folder)


@dataclass(frozen=True)
class StoredSample:
    """A sample's metadata, how its RGB is stored, and the bytes of that."""

    metadata: dict[str, Any]
    coding: RgbCoding
    rgb: bytes

    def as_it_is(self) -> StoredRgb:
        """The stored video, as if it had just been encoded.

        Raises:
            VideoError: corrupt; too-short.
        """
        try:
            frames, height, width = stored_shape(self.rgb)
        except RuntimeError as error:
            raise VideoError("corrupt", str(error)) from error
        said = tuple(self.metadata["rgb"][name] for name in ("frames", "height", "width"))
        if said != (frames, height, width):
            raise VideoError("corrupt", f"stored RGB of {frames} frames of {width}x{height}, its metadata says {said}")
        if min(height, width) != self.coding.short_side or height % 2 or width % 2:
            raise VideoError(
                "corrupt", f"stored RGB of {width}x{height}, its short side should be {self.coding.short_side}"
            )
        if frames < MINIMUM_FRAMES:
            raise VideoError("too-short", f"{frames} frames are stored, {MINIMUM_FRAMES} are needed")
        return self.after(StoredRgb(self.rgb, frames, width, height, 0, 0, SourceVideo(0, 0, Fraction(0), "unknown")))

    def after(self, encoded: StoredRgb) -> StoredRgb:
        """What was encoded from the stored video, with what is known of the video that was stored.

        Raises:
            VideoError: corrupt, metadata that does not say it.
        """
        try:
            source, rgb = self.metadata["source"], self.metadata["rgb"]
            numbers = source["width"], source["height"], rgb["duplicated"], rgb["dropped"]
            if not RATE.fullmatch(source["frame_rate"]) or not all(type(n) is int and n >= 0 for n in numbers):
                raise ValueError(f"a source of {source}")
        except (KeyError, TypeError, ValueError) as error:
            raise VideoError("corrupt", f"metadata that does not describe the source: {error!r}") from error
        video = SourceVideo(numbers[0], numbers[1], Fraction(source["frame_rate"]), "unknown")
        size = encoded.frames, encoded.width, encoded.height
        return StoredRgb(encoded.content, *size, numbers[2], numbers[3], video)


def dataset_source(text: str) -> DatasetSource:
    """Read `dataset:DIR` or `dataset:DIR@SNAPSHOT`; the current snapshot is pinned.

    Raises:
        FormatError: no dataset is published there.
    """
    folder, _, name = text.removeprefix(PREFIX).rpartition("@")
    folder, name = (folder, name) if folder else (name, "")
    if Path(text.removeprefix(PREFIX)).is_dir():
        folder, name = text.removeprefix(PREFIX), ""
    place = open_output(folder)
    snapshot = read_snapshot(place, name or None)
    if snapshot is None:
        raise FormatError(f"source {text!r}: no dataset is published in {folder}")
    return DatasetSource(str(place), snapshot.name)


@cache  # a process reads few of them, and steps ask for each clip
def snapshot_of(source: DatasetSource) -> Snapshot:
    """The snapshot that a source names."""
    snapshot = read_snapshot(source.place, source.snapshot)
    assert snapshot is not None  # it was read when the source was named
    return snapshot


@cache
def _places(source: DatasetSource) -> dict[str, tuple[Shard, np.void]]:
    folder, snapshot = source.place, snapshot_of(source)
    return {
        record["key"].decode(): (shard, record) for shard in snapshot.shards for record in read_index(folder, shard)
    }


def read_stored(source: DatasetSource, clip: Clip) -> StoredSample:
    """A clip's sample in a dataset.

    Raises:
        VideoError: missing.
        FormatError: damaged shards, or metadata that is not the clip's.
    """
    if clip.key not in _places(source):
        raise VideoError("missing", f"no clip {clip.key} in the dataset {source.folder}")
    metadata, members = _read(source, clip.key, (RGB, METADATA))
    stored = _clip(clip.key, metadata, source.folder)
    if stored.label != clip.label:
        raise VideoError("missing", f"{source.folder} has it with the label {stored.label!r}, not {clip.label!r}")
    return StoredSample(metadata, snapshot_of(source).specification.rgb, members[RGB])


def _read(source: DatasetSource, key: str, wanted: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, bytes]]:
    shard, record = _places(source)[key]
    place = f"{source.folder}: {shard.path}: {key}"
    if not record["json_length"] or not record["rgb_length"] or record["json_length"] > MAXIMUM_METADATA_BYTES:
        raise FormatError(f"{place}: an index without its video or its metadata")
    with (source.place / shard.path).open("rb") as file:
        members = read_members(file, record, wanted)
    return read_metadata(members[METADATA], place), members


def listing_of(sources: list[DatasetSource]) -> Listing:
    """All clips of datasets, each key once, as if a list had named them."""
    listing = Listing()
    for source in sources:
        for key in sorted(_places(source).keys() - listing.places.keys()):
            metadata, _ = _read(source, key, (METADATA,))
            listing.clips.append(_clip(key, metadata, source.folder))
            listing.places[key] = f"{source.folder}:{key}"
    return listing


def _clip(key: str, metadata: dict[str, Any], folder: str) -> Clip:
    """The clip that metadata describes, checked as a list's row is.

    Raises:
        FormatError: it describes none, or one with another key.
    """
    try:
        source, times = metadata["source"], (metadata["start_seconds"], metadata["end_seconds"])
        if not isinstance(source["video"], str) or not all(type(t) in (int, float, NoneType) for t in times):
            raise ValueError(f"source {source}, times {times}")
        label, split = metadata["label"], metadata["split"]
        if source["origin"] == "youtube":
            clip = youtube_clip(source["video"], *times, label, split)
        else:
            clip = file_clip(source["video"], label, *times, split, memberships=metadata["memberships"])
        if clip.key != key:
            raise ValueError(f"that clip's key is {clip.key}")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: the metadata of {key} describes no clip: {error}") from error
    return clip
