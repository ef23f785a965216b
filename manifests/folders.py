"""Folders of classes, `class/video.mp4`: every file is a clip, whole, with its folder's name as its label."""

from collections.abc import Iterator
from pathlib import Path

from manifests.clip import Clip, file_clip, printable

VIDEO_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"),
    )
)


def read_folder(path: Path, folder: Path | None) -> Iterator[tuple[str, Clip | ValueError]]:
    """Each file as its place, `folder:class/video`, and the clip or why it is none, in the order of the names.

    Args:
        path: the folder of classes.
        folder: where the clips' paths start, if that is above `path`; else they start at `path`.
    """
    root = path.resolve()
    base = folder.resolve() if folder and root.is_relative_to(folder.resolve()) else root
    for entry in visible(root):
        for file in visible(entry) if entry.is_dir() else [entry]:
            place = f"{root.name}:{printable(file.relative_to(root).as_posix())}"
            try:
                yield place, _file_in_class(file, root, base)
            except ValueError as error:
                yield place, error


def _file_in_class(file: Path, root: Path, base: Path) -> Clip:
    if file.parent == root or file.is_dir():
        raise ValueError("not at class/video: a file lies in the folder of its class")
    check_suffix(file.name)
    return file_clip(file.relative_to(base).as_posix(), file.parent.name, folder=str(base))


def check_suffix(name: str) -> None:
    """Raise `ValueError` for the name of a file that is no video's."""
    suffix = Path(name).suffix
    if suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{suffix[:40]!r} is not the ending of a video file")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files, such as those that macOS leaves in archives."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
