"""Samples of a dataset as sources of another one: other flow, another size or coding, flow where there was none.

Their videos are cut already. Where RGB is to be stored in the same way its bytes are taken as they are.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from manifests.clip import Clip
from manifests.index import Shard, Snapshot, read_index, read_members, read_metadata, read_snapshot
from manifests.lists import Listing
from manifests.sample import METADATA, RGB, FormatError, RgbCoding
from pipeline.video import SourceVideo, StoredRgb, VideoError

PREFIX = "dataset:"


@dataclass(frozen=True)
class DatasetSource:
    """A snapshot of a dataset, `dataset:DIR` or `dataset:DIR@0003`."""

    folder: str
    snapshot: str


@dataclass(frozen=True)
class StoredSample:
    """A sample's metadata, how its RGB is stored, and the bytes of that."""

    metadata: dict[str, Any]
    coding: RgbCoding
    rgb: bytes

    def as_it_is(self) -> StoredRgb:
        """The stored video, as if it had just been encoded."""
        return self.after(StoredRgb(self.rgb, *self._shape(), 0, 0, SourceVideo(0, 0, Fraction(0), "unknown")))

    def after(self, encoded: StoredRgb) -> StoredRgb:
        """What was encoded from the stored video, with what is known of the video that was stored."""
        source, rgb = self.metadata["source"], self.metadata["rgb"]
        video = SourceVideo(source["width"], source["height"], Fraction(source["frame_rate"]), "unknown")
        size = encoded.frames, encoded.width, encoded.height
        return StoredRgb(encoded.content, *size, rgb["duplicated"], rgb["dropped"], video)

    def _shape(self) -> tuple[int, int, int]:
        rgb = self.metadata["rgb"]
        return rgb["frames"], rgb["width"], rgb["height"]


def dataset_source(text: str) -> DatasetSource:
    """Read `dataset:DIR` or `dataset:DIR@SNAPSHOT`; the current snapshot is pinned.

    Raises:
        FormatError: no dataset is published there.
    """
    folder, _, name = text.removeprefix(PREFIX).partition("@")
    if Path(text.removeprefix(PREFIX)).is_dir():
        folder, name = text.removeprefix(PREFIX), ""
    snapshot = read_snapshot(Path(folder), name or None)
    if snapshot is None:
        raise FormatError(f"source {text!r}: no dataset is published in {folder}")
    return DatasetSource(str(Path(folder).resolve()), snapshot.name)


@cache  # a process reads few of them, and steps ask for each clip
def snapshot_of(source: DatasetSource) -> Snapshot:
    """The snapshot that a source names."""
    snapshot = read_snapshot(Path(source.folder), source.snapshot)
    assert snapshot is not None  # it was read when the source was named
    return snapshot


@cache
def _places(source: DatasetSource) -> dict[str, tuple[Shard, np.void]]:
    folder, snapshot = Path(source.folder), snapshot_of(source)
    return {
        record["key"].decode(): (shard, record) for shard in snapshot.shards for record in read_index(folder, shard)
    }


def read_stored(source: DatasetSource, key: str) -> StoredSample:
    """A sample of a dataset.

    Raises:
        VideoError: missing.
        FormatError: damaged shards.
    """
    if key not in _places(source):
        raise VideoError("missing", f"no clip {key} in the dataset {source.folder}")
    shard, record = _places(source)[key]
    with (Path(source.folder) / shard.path).open("rb") as file:
        members = read_members(file, record, (RGB, METADATA))
    metadata = read_metadata(members[METADATA], f"{shard.path}: {key}.{METADATA}")
    return StoredSample(metadata, snapshot_of(source).specification.rgb, members[RGB])


def listing_of(sources: list[DatasetSource]) -> Listing:
    """All clips of datasets, each key once, as if a list had named them."""
    listing = Listing()
    for source in sources:
        for key in sorted(_places(source).keys() - listing.places.keys()):
            listing.clips.append(_clip(key, read_stored(source, key).metadata, source.folder))
            listing.places[key] = source.folder
    return listing


def _clip(key: str, metadata: dict[str, Any], folder: str) -> Clip:
    try:
        origin, video = metadata["source"]["origin"], metadata["source"]["video"]
        times = metadata["start_seconds"], metadata["end_seconds"]
    except (KeyError, TypeError) as error:
        raise FormatError(f"{folder}: the metadata of {key} does not say where the clip is from: {error!r}") from error
    return Clip(key, origin, video, *times, metadata["label"], metadata["split"])
