"""Which video a clip was cut from, as far as names tell: clips of one video are alike, and no two tests of anything."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

_KINETICS_KEY = re.compile(r"(.{11})_[0-9]{6}_[0-9]{6}")
_UCF_NAME = re.compile(r"(v_.+_g[0-9]+)_c[0-9]+")
_HMDB_NAME = re.compile(r"(.+)_[fhlu]_[cn]m_np[0-9]+_(?:ba|fr|le|ri)_(?:bad|goo|med)_[0-9]+")


def named_by_key(key: str) -> bool:
    """Whether a sample's key alone names its source video, as Kinetics' do."""
    return _KINETICS_KEY.fullmatch(key) is not None


def source_video(key: str, metadata: Mapping[str, Any]) -> str:
    """The name of the video that a clip was cut from.

    One YouTube id, one group of UCF-101 (`…_g08_…`), one video that HMDB-51 took clips from, or else one file.

    Args:
        key: of the sample.
        metadata: of the sample, where the key does not tell: its `source` has a YouTube id, or a path in the list's
            folder.
    """
    if match := _KINETICS_KEY.fullmatch(key):
        return match[1]
    source = metadata.get("source")
    video = source.get("video") if isinstance(source, dict) else None
    if not isinstance(video, str):
        return key
    path = PurePosixPath(video)
    if match := _UCF_NAME.fullmatch(path.stem):
        return str(path.with_name(match[1]))  # groups are numbered anew in each class
    if match := _HMDB_NAME.fullmatch(path.stem):
        return match[1].removesuffix(f"_{path.parent.name}")  # one film has clips of several classes
    return video
