"""The paper's tables 2 to 5 filled with what cells found, as rows of text; pages are made of these."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from manifests.sample import FormatError
from model import Architecture
from train.cells import RESULT, Cell, CellList, Dataset
from train.paper import (
    IMAGENET,
    IMAGENET_KINETICS,
    KINETICS,
    MODELS,
    OTHERS,
    SCRATCH,
    STREAMS,
    Place,
    Score,
    Setting,
    figures,
    streams_in_table4,
)

MINUS = "\N{MINUS SIGN}"
STREAM_NAMES = {"rgb": "RGB", "flow": "flow", "both": "RGB + flow"}
RESULT_BYTES = 1 << 30


class Found(NamedTuple):
    """A share of clips right, in percent, and its 95 % interval; of several splits their mean."""

    top1: float
    low: float
    high: float
    top5: float


class Entry(NamedTuple):
    """What stands at one place of a table."""

    found: Found | None
    paper: Score | None
    comparable: bool  # whether both are of the same data set

    @property
    def text(self) -> str:
        """Ours with its interval, the paper's, and the difference, as far as there are any."""
        if self.found is None:
            return "–" if self.paper is None else f"– (paper {_score(self.paper)})"
        ours = f"{self.found.top1:.1f} [{self.found.low:.1f}, {self.found.high:.1f}]"
        if self.paper is None:
            return ours
        if self.paper.top5 is not None:
            ours += f", top-5 {self.found.top5:.1f}"
        apart = f", {signed(self.found.top1 - self.paper.top1)}" if self.comparable else ""
        return f"{ours} (paper {_score(self.paper)}{apart})"


@dataclass(frozen=True)
class Table:
    """A table of the paper: a title, a note, and rows of text."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Results = Mapping[Cell, dict[str, Any]]


def read_results(cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    """What those cells found that are done.

    Raises:
        FormatError: a result that is none.
        OSError: one that cannot be read.
    """
    return {cell: _read_result(cell) for cell in cells if (cell.folder / RESULT).is_file()}


def _read_result(cell: Cell) -> dict[str, Any]:
    file = cell.folder / RESULT
    try:
        if file.stat().st_size > RESULT_BYTES:
            raise ValueError(f"larger than {RESULT_BYTES} bytes")
        found = json.loads(file.read_bytes())
        found_of([found])
        return dict(found)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{file}: not what i3d-eval writes: {error!r}") from error


def found_of(results: Sequence[Mapping[str, Any]]) -> Found:
    """A figure of the results of one split or several.

    The interval of a mean takes the splits' tests as independent of each other.
    """
    count = len(results)
    top1 = 100 * sum(float(some["top1"]) for some in results) / count
    top5 = 100 * sum(float(some["top5"]) for some in results) / count
    intervals = [[float(end) for end in some["intervals"]["top1"]] for some in results]
    if count == 1:
        return Found(top1, 100 * intervals[0][0], 100 * intervals[0][1], top5)
    half = 100 * math.sqrt(sum(((high - low) / 2) ** 2 for low, high in intervals)) / count
    return Found(top1, max(0.0, top1 - half), min(100.0, top1 + half), top5)


def tables(cell_list: CellList, results: Results) -> list[Table]:
    """Tables 2 to 5, those of them that any of the cells belongs to."""
    by_dataset = {name: some for name, some in cell_list.datasets.items() if some.paper is not None}
    made = (make(by_dataset, results) for make in (_table2, _table3, _table4, _table5))
    return [table for table in made if table is not None]


def _table2(datasets: Mapping[str, Dataset], results: Results) -> Table | None:
    """Architectures, trained and tested on each data set; from scratch where nothing began with ImageNet."""
    paper = figures(2)
    began = {cell.place.start for cell in results if cell.place.setting == "original"}
    start = IMAGENET if IMAGENET in began else SCRATCH
    columns = [(name, stream) for name in datasets for stream in STREAMS]
    rows = []
    for model, title in MODELS.items():
        own = SCRATCH if model == "c3d" else start
        places = [Place(name, "original", own, model, stream) for name, stream in columns]
        printed = [place._replace(start=SCRATCH if model == "c3d" else IMAGENET) for place in places]
        rows.append(_row(title, places, printed, datasets, results, paper))
    begun = "with ImageNet's weights" if start == IMAGENET else "from scratch (the paper's with ImageNet's weights)"
    head = tuple(f"{name}: {STREAM_NAMES[stream]}" for name, stream in columns)
    return _table(
        "Table 2: architectures", f"Top-1 in percent; begun {begun}, the 3D-ConvNet from scratch. Split 1.", head, rows
    )


def _table3(datasets: Mapping[str, Dataset], results: Results) -> Table | None:
    """Kinetics with and without ImageNet first."""
    paper = figures(3)
    columns = [
        (name, start, stream)
        for name, dataset in datasets.items()
        for start in (SCRATCH, IMAGENET)
        for stream in STREAMS
        if dataset.paper == "Kinetics"
    ]
    rows = []
    for model, title in MODELS.items():
        places = [Place(name, "original", start, model, stream) for name, start, stream in columns]
        rows.append(_row(title, places, places, datasets, results, paper))
    head = tuple(f"{name}, {start}: {STREAM_NAMES[stream]}" for name, start, stream in columns)
    return _table("Table 3: with ImageNet first, and without", "Top-1 in percent.", head, rows)


def _table4(datasets: Mapping[str, Dataset], results: Results) -> Table | None:
    """Transfer: trained on the small data set alone, last layer, or all of it."""
    paper = figures(4)
    starts: dict[Setting, tuple[str, str]] = {
        "original": (IMAGENET, SCRATCH),
        "fixed": (IMAGENET_KINETICS, KINETICS),
        "full-ft": (IMAGENET_KINETICS, KINETICS),
    }
    small = [name for name, dataset in datasets.items() if dataset.paper != "Kinetics"]
    columns = [(name, setting, start) for name in small for setting in starts for start in starts[setting]]
    rows = []
    for model, title in MODELS.items():
        stream = streams_in_table4(model)
        places = [Place(name, setting, start, model, stream) for name, setting, start in columns]
        rows.append(_row(title, places, places, datasets, results, paper))
    head = tuple(f"{name}: {setting}, {start}" for name, setting, start in columns)
    note = "Top-1 in percent, split 1; RGB + flow where a model takes both. Each from the weights that are named."
    return _table("Table 4: transfer", note, head, rows)


def _table5(datasets: Mapping[str, Dataset], results: Results) -> Table | None:
    """I3D after full fine-tuning, averaged over the splits, and methods of others."""
    paper = figures(5)
    small = [name for name, dataset in datasets.items() if dataset.paper != "Kinetics"]
    rows: list[tuple[str, ...]] = []
    for start in (IMAGENET_KINETICS, KINETICS):
        for stream in STREAMS:
            places = [Place(name, "full-ft", start, "i3d", stream) for name in small]
            title = f"I3D, {STREAM_NAMES[stream]}, {start} first"
            rows.append(_row(title, places, places, datasets, results, paper, every_split=True))
    table = _table("Table 5: beside other methods", "Top-1 in percent, mean over the splits.", tuple(small), rows)
    if table is None:
        return None
    numbers = {"UCF-101": 0, "HMDB-51": 1}
    others = []
    for method, scores in OTHERS.items():
        printed = [scores[numbers[str(datasets[name].paper)]] for name in small]
        others.append((method, *("–" if score is None else f"(paper {score:.1f})" for score in printed)))
    return Table(table.title, table.note, table.head, (*others, *table.rows))


def _row(
    title: str,
    places: Sequence[Place],
    printed: Sequence[Place],
    datasets: Mapping[str, Dataset],
    results: Results,
    paper: Mapping[Place, Score],
    every_split: bool = False,
) -> tuple[str, ...]:
    """A row: what cells found at `places`, and what the paper has at `printed`, its data sets by the file's names."""
    texts = [title]
    for place, there in zip(places, printed, strict=True):
        dataset = datasets[place.dataset]
        score = paper.get(there._replace(dataset=str(dataset.paper)))
        texts.append(Entry(_found(place, dataset, results, every_split), score, dataset.same).text)
    return tuple(texts)


def _found(place: Place, dataset: Dataset, results: Results, every_split: bool) -> Found | None:
    """Of split 1, or of all splits if each is done."""
    splits: tuple[int | None, ...] = dataset.splits or (None,)
    if not every_split:
        splits = splits[:1]
    found = {cell.split: result for cell, result in results.items() if cell.place == place and cell.split in splits}
    return found_of([found[split] for split in splits]) if len(found) == len(splits) else None


def _table(title: str, note: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table | None:
    """A table without the columns and rows in which nothing was found; None where nothing was."""
    has = [[cell[:1].isdigit() for cell in row[1:]] for row in rows]
    columns = [0, *(number for number, column in enumerate(zip(*has, strict=True), start=1) if any(column))]
    if len(columns) == 1:
        return None
    kept = [tuple(row[number] for number in columns) for row, some in zip(rows, has, strict=True) if any(some)]
    names = ("", *head)
    return Table(title, note, tuple(names[number] for number in columns), tuple(kept))


def signed(difference: float) -> str:
    """A difference with its sign, such as "+1.2"."""
    return f"{'+' if difference >= 0 else MINUS}{abs(difference):.1f}"


def _score(score: Score) -> str:
    return f"{score.top1:.1f}" if score.top5 is None else f"{score.top1:.1f}, {score.top5:.1f}"


def models_of(results: Results) -> list[Architecture]:
    """The models that anything was found of, in the paper's order."""
    return [model for model in MODELS if any(cell.place.model == model for cell in results)]
