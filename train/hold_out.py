"""A share of the training clips held out to test on: whole source videos, and the same clips whoever asks."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np

from manifests.index import NO_CLASS
from manifests.sample import METADATA, FormatError
from train.stream import Sample, Samples, read_json

LARGEST_SHARE = 0.5  # up to which a class whose clips each are of one class always keeps some
_READS_AT_A_TIME = 32  # each of which is a round trip in a bucket
_KINETICS_KEY = re.compile(r"(.{11})_[0-9]{6}_[0-9]{6}")
_UCF_NAME = re.compile(r"(v_.+_g[0-9]+)_c[0-9]+")
_HMDB_NAME = re.compile(r"(.+)_[fhlu]_[cn]m_np[0-9]+_(?:ba|fr|le|ri)_(?:bad|goo|med)_[0-9]+")


def hold_out(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """Take about `share` of each class's clips out of some samples.

    Clips of one source video are never parted: they are of one YouTube id, one group of UCF-101 (`…_g08_…`), one video
    that HMDB-51 took clips from, or else of one file. The groups are gone through in the order of a hash of their
    names, and one is held out where that brings the classes nearer to their shares. So the choice depends on nothing
    but the samples that there are and `share`; clips without a label are never held out.

    Args:
        samples: of one split.
        share: greater than 0, at most `LARGEST_SHARE`.

    Returns:
        The rest, and the clips held out, each in the order of the samples.

    Raises:
        ValueError: a share out of range.
        FormatError: so few clips or groups that none is held out; unreadable metadata.
        OSError: a sample that cannot be reached.
    """
    if not 0 < share <= LARGEST_SHARE:
        raise ValueError(f"a share of {share} is held out: it must be above 0 and at most {LARGEST_SHARE}")
    classes = samples.records["class_index"]
    labelled = np.flatnonzero(classes != NO_CLASS)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in zip(labelled.tolist(), source_videos(samples.take(labelled)), strict=True):
        groups[name].append(number)
    class_of = classes.tolist()
    missing = (share * np.bincount(classes[labelled])).tolist()  # of each class, clips that are still to be held out
    chosen = np.zeros(len(samples), bool)
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        counts = Counter(class_of[number] for number in groups[name])
        if sum(abs(missing[index] - count) - abs(missing[index]) for index, count in counts.items()) < 0:
            chosen[groups[name]] = True
            for index, count in counts.items():
                missing[index] -= count
    if not chosen.any():
        raise FormatError(
            f"no clip can be held out: a share of {share:g} of {len(labelled)} clips from {len(groups)} videos is at "
            f"most half a video of any class: give a larger share (--hold-out, at most {LARGEST_SHARE:g}), clips to "
            "test on (--val-shards or --val-split), or where it is to choose a learning rate a single one (--rates)"
        )
    return samples.take(~chosen), samples.take(chosen)


def source_video(key: str, video: str) -> str:
    """The name of the video that a clip was cut from, as far as names tell.

    Args:
        key: of the sample.
        video: what its metadata calls the source: a YouTube id, or a path in the list's folder.
    """
    if match := _KINETICS_KEY.fullmatch(key):
        return match[1]
    path = PurePosixPath(video)
    if match := _UCF_NAME.fullmatch(path.stem):
        return str(path.with_name(match[1]))  # groups are numbered anew in each class
    if match := _HMDB_NAME.fullmatch(path.stem):
        return match[1].removesuffix(f"_{path.parent.name}")  # one film has clips of several classes
    return video


def source_videos(samples: Samples) -> Iterator[str]:
    """The source video of each sample; metadata is read where the key does not tell.

    Raises:
        FormatError: unreadable metadata.
        OSError: a sample that cannot be reached.
    """

    def name(sample: Sample) -> str:
        if _KINETICS_KEY.fullmatch(sample.key):
            return source_video(sample.key, "")
        source = read_json(sample.read((METADATA,))).get("source")
        video = source.get("video") if isinstance(source, dict) else None
        return source_video(sample.key, video if isinstance(video, str) else sample.key)

    with ThreadPoolExecutor(_READS_AT_A_TIME) as pool:
        yield from pool.map(name, samples)
