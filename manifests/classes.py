"""Class lists: which label has which index. An index always comes from a pinned list, never from labels seen."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

PUBLISHED = ("kinetics400", "kinetics600", "kinetics700")


@dataclass(frozen=True)
class ClassList:
    """An ordered list of distinct labels with a name; a label's class index is its place in the list."""

    name: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raise `ValueError` for an empty list, an empty label, or a label that stands twice."""
        if not self.labels:
            raise ValueError(f"class list {self.name!r} holds no label")
        for place, label in enumerate(self.labels):
            if not label or label != label.strip() or not label.isprintable():
                raise ValueError(f"class list {self.name!r}, entry {place + 1}: {label!r} is no label")
            if self.index[label] != place:
                raise ValueError(
                    f"class list {self.name!r}: {label!r} stands twice, at entries {place + 1} and "
                    f"{self.index[label] + 1}"
                )

    @cached_property
    def index(self) -> dict[str, int]:
        """Class index of each label."""
        return {label: place for place, label in enumerate(self.labels)}

    @cached_property
    def sha256(self) -> str:
        """Identity of the list: the hash of its labels, a line each."""
        return hashlib.sha256("".join(f"{label}\n" for label in self.labels).encode()).hexdigest()


@cache  # a list of another dataset's labels asks for them once a row
def published_classes(name: str) -> ClassList:
    """The class list of a published dataset, one of `PUBLISHED`: sorted, as the released networks' outputs are."""
    if name not in PUBLISHED:
        raise ValueError(f"no published class list is called {name!r}; there are {', '.join(PUBLISHED)}")
    text = files("manifests").joinpath("data", f"{name}.txt").read_text(encoding="utf-8")
    return ClassList(name, tuple(text.splitlines()))


def read_classes(name_or_file: str) -> ClassList:
    """A published list by its name, or a text file with one label a line.

    Raises:
        ValueError: neither a published name nor a readable file, or the file is no class list.
    """
    if name_or_file in PUBLISHED:
        return published_classes(name_or_file)
    try:
        text = Path(name_or_file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"class list {name_or_file!r} is neither one of {', '.join(PUBLISHED)} nor a readable text file: {error}"
        ) from error
    return ClassList(Path(name_or_file).stem, tuple(line.strip() for line in text.splitlines()))


def published_with(labels: Iterable[str]) -> list[str]:
    """Names of the published lists that hold all of `labels`, for messages that tell a user which list to pass."""
    wanted = set(labels)
    return [name for name in PUBLISHED if wanted <= published_classes(name).index.keys()]


def published_of_size(number_of_classes: int) -> ClassList | None:
    """The published list with that many classes, for checkpoints that carry no labels."""
    for name in PUBLISHED:
        classes = published_classes(name)
        if len(classes.labels) == number_of_classes:
            return classes
    return None
