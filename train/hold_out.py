"""A share of the training clips held out to test on: whole source videos, and the same clips whoever asks."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from manifests.index import NO_CLASS
from manifests.sample import METADATA, FormatError
from train.source_video import named_by_key, source_video
from train.stream import Sample, Samples, read_json

LARGEST_SHARE = 0.5  # up to which a class whose clips each are of one class always keeps some
_READS_AT_A_TIME = 32  # each of which is a round trip in a bucket


def hold_out(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """Take about `share` of each class's clips out of some samples.

    Clips of one source video (`train.source_video`) are never parted. The groups are gone through in the order of a
    hash of their names, and one is held out where that brings the classes nearer to their shares. So the choice depends
    on nothing but the samples that there are and `share`; clips without a label are never held out.

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
    for number, name in zip(labelled.tolist(), _sources(samples.take(labelled)), strict=True):
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


def _sources(samples: Samples) -> Iterator[str]:
    """The source video of each sample; metadata is read where the key does not tell."""

    def name(sample: Sample) -> str:
        metadata = {} if named_by_key(sample.key) else read_json(sample.read((METADATA,)))
        return source_video(sample.key, metadata)

    with ThreadPoolExecutor(_READS_AT_A_TIME) as pool:
        yield from pool.map(name, samples)
