"""UCF-101 and HMDB-51 as they are published: videos in folders of classes, and files of three splits that overlap.

UCF-101     ucfTrainTestlist/classInd.txt                     "1 ApplyEyeMakeup": the classes in their order
            ucfTrainTestlist/trainlist01.txt … 03             "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"
            ucfTrainTestlist/testlist01.txt … 03              "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
            UCF-101/ApplyEyeMakeup/v_….avi
HMDB-51     testTrainMulti_7030_splits/CLASS_test_split1.txt … 3   "name.avi 1": 1 train, 2 test, 0 not used
            CLASS/name.avi, or below hmdb51_org/

Each video is one clip, in however many splits it is. One that a split file names and that is not there is a clip as
well, and will be reported as missing. One that no split file names, in the folder of a class, is a clip that belongs to
no split, like those that HMDB-51 does not use. Folders of other names are not looked at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from manifests.classes import ClassList
from manifests.clip import MEMBERSHIPS, Clip, file_clip, printable
from manifests.folders import check_suffix, visible

UCF101, HMDB51 = "ucf101", "hmdb51"
SPLIT_FOLDERS = {UCF101: "ucfTrainTestlist", HMDB51: "testTrainMulti_7030_splits"}
VIDEO_FOLDERS = ("UCF-101", "hmdb51_org", "videos")
SPLIT_FILES = {
    UCF101: re.compile(r"(train|test)list0([123])\.txt"),
    HMDB51: re.compile(r"([^.].*)_test_split([123])\.txt"),
}
HMDB_PARTS = {"0": "", "1": "train", "2": "test"}
LINE_SHOWN = 200  # characters of a bad line in its message


class SplitLine(NamedTuple):
    """A line of a split file: a video and the part of a split that it is in, "train", "test" or "" for neither."""

    label: str
    name: str
    split: int
    part: str


@dataclass
class _Video:
    label: str
    place: str
    parts: dict[int, tuple[str, str]] = field(default_factory=dict)  # of a split: the part, and where that is said


@dataclass(frozen=True)
class Benchmark:
    """One of the two, found in a folder."""

    name: str  # of its folder, in places
    classes: ClassList
    split_files: tuple[Path, ...]
    videos: Path

    def rows(self) -> Iterator[tuple[str, Clip | ValueError]]:
        """Each video as the place where it is named first and the clip, and each bad line with the reason."""
        videos: dict[str, _Video] = {}
        for file in self.split_files:
            for place, text in _lines(file, self.name):
                try:
                    _add(videos, self._split_line(file.name, text), place)
                except ValueError as error:
                    yield place, ValueError(f"{error} in {text[:LINE_SHOWN]!r}")
        for path, video in videos.items():
            memberships = [name for name in MEMBERSHIPS if video.parts.get(int(name[-1]), ("",))[0] == name[:-1]]
            yield video.place, file_clip(path, video.label, folder=str(self.videos), memberships=memberships)
        yield from self._unnamed(videos)

    def _split_line(self, file_name: str, text: str) -> SplitLine:
        """What a line of a split file says; raises `ValueError` for a bad one."""
        match = SPLIT_FILES[self.classes.name].fullmatch(file_name)
        assert match is not None  # else it were no split file
        said, split = match[1], int(match[2])
        if self.classes.name == HMDB51:
            name, _, flag = text.rpartition(" ")
            if flag not in HMDB_PARTS:
                raise ValueError(f"{flag[:40]!r} after the name is not 0, 1 or 2")
            return SplitLine(said, name.strip(), split, HMDB_PARTS[flag])
        path, _, number = text.rpartition(" ") if said == "train" else (text, "", "")
        label, _, name = path.strip().partition("/")
        if label not in self.classes.index:
            raise ValueError(f"no class {label[:40]!r} in classInd.txt")
        if said == "train" and number != str(self.classes.index[label] + 1):
            raise ValueError(f"number {number[:40]!r} for {label}, which is class {self.classes.index[label] + 1}")
        return SplitLine(label, name, split, said)

    def _unnamed(self, videos: dict[str, _Video]) -> Iterator[tuple[str, Clip | ValueError]]:
        for label in sorted(self.classes.labels):
            folder = self.videos / label
            for file in visible(folder) if folder.is_dir() else []:
                path = f"{label}/{file.name}"
                if path not in videos:
                    place = f"{self.name}:{printable(path)}"
                    try:
                        check_suffix(file.name)
                        yield place, file_clip(path, label, folder=str(self.videos))
                    except ValueError as error:
                        yield place, error


def benchmark_in(folder: Path, source: Path | None) -> Benchmark | None:
    """The benchmark that a folder holds; None where it is a folder of another kind.

    Args:
        folder: holds `ucfTrainTestlist` or `testTrainMulti_7030_splits`.
        source: where the folders of classes lie, if any of them is there; else they are looked for in `folder`.

    Raises:
        ValueError: both at once, no split files, or a broken list of classes.
    """
    root = folder.resolve()
    found = [name for name, splits in SPLIT_FOLDERS.items() if (root / splits).is_dir()]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{folder}: holds the split files of {' and '.join(found)}: put each into a folder of its own")
    name = found[0]
    splits = root / SPLIT_FOLDERS[name]
    files = {file: match for file in sorted(splits.iterdir()) if (match := SPLIT_FILES[name].fullmatch(file.name))}
    if not files:
        raise ValueError(f"{splits}: holds no split files of {name}")
    labels = _ucf_labels(splits / "classInd.txt") if name == UCF101 else sorted({match[1] for match in files.values()})
    places = [source.resolve()] if source and any((source / label).is_dir() for label in labels) else []
    places += [root / place for place in VIDEO_FOLDERS if (root / place).is_dir()]
    return Benchmark(root.name, ClassList(name, tuple(labels)), tuple(files), (places or [root])[0])


def _ucf_labels(file: Path) -> list[str]:
    labels: list[str] = []
    for place, text in _lines(file, file.parent.name):
        number, _, label = text.partition(" ")
        if number != str(len(labels) + 1) or not label or label.startswith(".") or "/" in label:
            raise ValueError(f"{place}: {text[:LINE_SHOWN]!r} is not {len(labels) + 1} and the name of a class")
        labels.append(label.strip())
    return labels


def _lines(file: Path, list_name: str) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, and their places."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"{list_name}:{printable(file.name)}:{number}", line.strip()


def _add(videos: dict[str, _Video], line: SplitLine, place: str) -> None:
    path = f"{line.label}/{line.name}"
    if "/" in line.name:
        raise ValueError(f"{line.name[:LINE_SHOWN]!r} is no file in the folder of its class")
    check_suffix(line.name)
    file_clip(path, line.label)  # checks the rest of the name
    video = videos.setdefault(path, _Video(line.label, place))
    if line.split in video.parts:
        part, earlier = video.parts[line.split]
        told = "stands already" if part == line.part else f"is {part or 'not used'} in this split"
        raise ValueError(f"{path} {told} at {earlier}")
    video.parts[line.split] = line.part, place
