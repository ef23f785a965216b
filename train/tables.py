"""The paper's tables 2 to 5 filled with what cells found, as rows of text; pages are made of these."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from manifests.sample import FormatError
from train.cells import Cell, CellList, Dataset, Difference
from train.outcomes import Term, interval_of_sum, of_common_clips, outcome_of
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
    figures,
)
from train.transfer import RESULT, Setting

MINUS = "\N{MINUS SIGN}"
STREAM_NAMES = {"rgb": "RGB", "flow": "flow", "both": "RGB + flow"}
RESULT_BYTES = 1 << 30
# What goes wrong when JSON of a stranger is read as something that it is not.
DAMAGED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
FIRST_SPLIT = 1  # that tables 2 and 4 are of
DIFFERENCES_NOTE = (
    "Points of top-1 between two tests of the same clips; of several splits and seeds the mean. The 95 % interval is "
    "of the bootstrap over source videos, and over seeds where there are several; of one seed it knows nothing of "
    "another training. Of few videos it is too narrow, of few seeds rough, and of twenty equal pairs one leaves out 0."
)


@dataclass(frozen=True)
class Found:
    """A share of clips right, in percent, and its 95 % interval; of several splits or seeds their mean.

    `by_seed` has the share of each seed that is done, where `seeds` of them are listed: more than one.
    """

    top1: float
    low: float
    high: float
    top5: float
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    seeds: int = 1

    @property
    def text(self) -> str:
        """Share and interval."""
        return f"{self.top1:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def of_seeds(self) -> str:
        """What each seed came to, and how many of them are done; nothing where there is one."""
        if self.seeds == 1:
            return ""
        each = ", ".join(f"{seed}: {top1:.1f}" for seed, top1 in self.by_seed.items())
        return f"; seeds {each}{_part(len(self.by_seed), self.seeds)}"


class Entry(NamedTuple):
    """What stands at one place of a table.

    found: by a cell.
    paper: the paper's figure.
    dataset: the paper's name of the data that its figure is of.
    comparable: whether the figure is of the same data, begun with the same weights.
    """

    found: Found | None
    paper: Score | None
    dataset: str
    comparable: bool

    @property
    def text(self) -> str:
        """Ours with its interval, the paper's, and the difference, as far as there are any."""
        theirs = "" if self.paper is None else f"{'paper' if self.comparable else self.dataset} {_score(self.paper)}"
        if self.found is None:
            return f"– ({theirs})" if theirs else "–"
        if self.paper is None:
            return f"{self.found.text}{self.found.of_seeds}"
        top5 = f", top-5 {self.found.top5:.1f}" if self.paper.top5 is not None else ""
        apart = f", {signed(self.found.top1 - self.paper.top1)}" if self.comparable else ""
        return f"{self.found.text}{top5} ({theirs}{apart}){self.found.of_seeds}"


@dataclass(frozen=True)
class Table:
    """A table: a title, a note, and rows of text."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Results = Mapping[Cell, dict[str, Any]]
_Row = tuple[str, list[Entry]]


def read_results(cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    """What those cells found that are done.

    Raises:
        FormatError: a result that is none, or is of something else than the list says.
        OSError: one that cannot be read.
    """
    return {cell: _read_result(cell) for cell in cells if is_done(cell)}


def is_done(cell: Cell) -> bool:
    """Whether a cell's result is there.

    Raises:
        FormatError: it is of something else than the list says.
    """
    if not (cell.note.is_file() and (cell.folder / RESULT).is_file()):
        return False
    if cell.note.read_text(encoding="utf-8", errors="replace") != cell.identity:
        raise FormatError(
            f"{cell.folder}: its result is of another list of cells ({cell.note} has what); remove both, or choose "
            "another --output"
        )
    return True


def _read_result(cell: Cell) -> dict[str, Any]:
    file = cell.folder / RESULT
    try:
        if file.stat().st_size > RESULT_BYTES:
            raise ValueError(f"larger than {RESULT_BYTES} bytes")
        found = dict(json.loads(file.read_bytes()))
        if found["top1"] is None:
            raise FormatError(f"{file}: none of the clips has a label: nothing is right or wrong")
        shares = [found["top1"], found["top5"], found["mean_class_accuracy"], *found["intervals"]["top1"]]
        if len(shares) != 5 or not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares):
            raise ValueError(f"shares of clips are {shares}")
        outcome_of(found)  # which what is made of several results reads
        return found
    except FormatError:
        raise
    except DAMAGED as error:
        raise FormatError(f"{file}: not what this i3d-eval writes: {error!r}") from error


def found_of(result: Mapping[str, Any]) -> Found:
    """The figure of one result."""
    low, high = result["intervals"]["top1"]
    return Found(100 * result["top1"], 100 * low, 100 * high, 100 * result["top5"])


def mean_of(results: Mapping[int | None, Sequence[Mapping[str, Any]]], seeds: int = 1) -> Found:
    """The mean of several results: of each seed those of as many splits. `seeds`: how many were to be."""
    every = [(seed, some) for seed, of_splits in results.items() for some in of_splits]
    if len(every) == 1:
        found = found_of(every[0][1])
    else:
        low, high = interval_of_sum([Term(1 / len(every), seed, outcome_of(some)) for seed, some in every])
        top1, top5 = (sum(some[name] for _, some in every) / len(every) for name in ("top1", "top5"))
        found = Found(100 * top1, 100 * low, 100 * high, 100 * top5)
    means = {seed: 100 * sum(some["top1"] for some in splits) / len(splits) for seed, splits in results.items()}
    return replace(found, by_seed=means, seeds=seeds)


@dataclass(frozen=True)
class _Filling:
    """Looks figures up, and remembers which cells stand in a table."""

    datasets: Mapping[str, Dataset]
    cells: Sequence[Cell]
    results: Results
    used: set[Cell] = field(default_factory=set)

    def entry(self, place: Place, printed: Mapping[Place, Score], there: Place | None = None) -> Entry:
        """What a cell found at a place, of split 1, and what the paper has there or at another start (`there`)."""
        dataset = self.datasets[place.dataset]
        split = FIRST_SPLIT if dataset.splits else None
        return self._entry(place, [split], printed, there or place)

    def mean(self, place: Place, printed: Mapping[Place, Score]) -> Entry:
        """The same of all splits, if each is done."""
        return self._entry(place, self.datasets[place.dataset].splits or [None], printed, place)

    def _entry(self, place: Place, splits: Sequence[int | None], printed: Mapping[Place, Score], there: Place) -> Entry:
        dataset = self.datasets[place.dataset]
        paper = printed.get(there._replace(dataset=str(dataset.paper)))
        return Entry(self.found(place, splits), paper, str(dataset.paper), dataset.same and there == place)

    def found(self, place: Place, splits: Sequence[int | None]) -> Found | None:
        """The mean over splits, and over those seeds that all these splits are done of; None where none is."""
        listed = {(cell.seed, cell.split): cell for cell in self.cells if cell.place == place and cell.split in splits}
        seeds = list(dict.fromkeys(seed for seed, _ in listed))
        groups = {seed: [listed.get((seed, split)) for split in splits] for seed in seeds}
        done = {
            seed: [cell for cell in cells if cell is not None]
            for seed, cells in groups.items()
            if all(cell in self.results for cell in cells)
        }
        self.used.update(cell for cells in done.values() for cell in cells)
        by_seed = {seed: [self.results[cell] for cell in cells] for seed, cells in done.items()}
        return mean_of(by_seed, len(seeds)) if by_seed else None


def tables(cell_list: CellList, results: Results) -> list[Table]:
    """Tables 2 to 5, as far as cells belong to them; one of those that belong to none; one of each comparison."""
    datasets = {name: some for name, some in cell_list.datasets.items() if some.paper is not None}
    filling = _Filling(datasets, cell_list.cells, results)
    made = [make(filling) for make in (_table2, _table3, _table4, _table5)]
    others = []
    for cell in results:
        if cell not in filling.used and (found := filling.found(cell.place, [cell.split])):
            others.append((cell.name.removesuffix(f"-seed{cell.seed}"), f"{found.text}{found.of_seeds}"))
    note = "Top-1 in percent."
    more = Table("Cells that stand in none of the paper's tables", note, ("", "top-1"), tuple(others))
    return [
        *(table for table in made if table is not None),
        *([more] if others else []),
        *_differences(cell_list.differences, results),
    ]


def _differences(differences: Sequence[Difference], results: Results) -> Iterator[Table]:
    """Of each comparison the rows that two cells of each split are done of, for some seed."""
    note = DIFFERENCES_NOTE
    for difference in differences:
        rows = []
        for name, pairs in difference.rows.items():
            seeds = list(dict.fromkeys(cell.seed for cell, _ in pairs))
            missing = {a.seed for a, b in pairs if a not in results or b not in results}
            if done := [(a, b) for a, b in pairs if a.seed not in missing]:
                rows.append((name, *_difference(done, results, _part(len(seeds) - len(missing), len(seeds)))))
        if rows:
            yield Table(difference.title, note, ("", "difference", "of each", "clips", "videos"), tuple(rows))
            note = "Points of top-1, as above."


def _difference(pairs: Sequence[tuple[Cell, Cell]], results: Results, part: str) -> tuple[str, str, str, str]:
    """The mean difference with its interval; that of each pair where there are several; clips and source videos."""
    terms: list[Term] = []
    each: dict[str, float] = {}
    for first, second in pairs:
        name = ", ".join(
            f"{word} {number}" for word, number in (("split", first.split), ("seed", first.seed)) if number is not None
        )
        compared = of_common_clips(outcome_of(results[first]), outcome_of(results[second]))
        if compared is None:
            return "no clips in common", name, "0", "0"
        terms += [Term(sign * 100 / len(pairs), first.seed, some) for sign, some in zip((1, -1), compared, strict=True)]
        each[name] = 100 * (compared[0].share - compared[1].share)
    low, high = interval_of_sum(terms)
    found = f"{signed(sum(each.values()) / len(each))} [{signed(low)}, {signed(high)}]{part}"
    told = ", ".join(f"{name}: {signed(one)}" for name, one in each.items()) if len(each) > 1 else ""
    clips = {key: video for term in terms for key, (_, video) in term.outcome.clips.items()}
    return found, told, f"{len(clips):,}", f"{len(set(clips.values())):,}"


def _part(done: int, listed: int) -> str:
    return f" ({done} of {listed} seeds)" if done < listed else ""


def _table2(filling: _Filling) -> Table | None:
    """Architectures, trained and tested on each data set; from scratch where nothing began with ImageNet."""
    paper = figures(2)
    begun = {
        name: IMAGENET if any(cell.place[:3] == (name, "original", IMAGENET) for cell in filling.results) else SCRATCH
        for name in filling.datasets
    }
    columns = [(name, stream) for name in filling.datasets for stream in STREAMS]
    rows: list[_Row] = []
    for model, title in MODELS.items():
        entries = []
        for name, stream in columns:
            ours, theirs = (SCRATCH if model == "c3d" else start for start in (begun[name], IMAGENET))
            place = Place(name, "original", ours, model, stream)
            entries.append(filling.entry(place, paper, place._replace(start=theirs)))
        rows.append((title, entries))
    head = [f"{name}, {begun[name]}: {STREAM_NAMES[stream]}" for name, stream in columns]
    note = f"Top-1 in percent; the 3D-ConvNet from scratch.{_of_split(filling)}"
    return _table("Table 2: architectures", note, head, rows)


def _table3(filling: _Filling) -> Table | None:
    """Kinetics with and without ImageNet first."""
    paper = figures(3)
    large = [name for name, dataset in filling.datasets.items() if dataset.paper == "Kinetics"]
    columns = [(name, start, stream) for name in large for start in (SCRATCH, IMAGENET) for stream in STREAMS]
    rows: list[_Row] = []
    for model, title in MODELS.items():
        places = [Place(name, "original", start, model, stream) for name, start, stream in columns]
        rows.append((title, [filling.entry(place, paper) for place in places]))
    head = [f"{name}, {start}: {STREAM_NAMES[stream]}" for name, start, stream in columns]
    return _table("Table 3: with ImageNet first, and without", "Top-1 in percent.", head, rows)


def _table4(filling: _Filling) -> Table | None:
    """Transfer: trained on the small data set alone, last layer, or all of it."""
    paper = figures(4)
    starts: dict[Setting, tuple[str, str]] = {
        "original": (IMAGENET, SCRATCH),
        "fixed": (IMAGENET_KINETICS, KINETICS),
        "full-ft": (IMAGENET_KINETICS, KINETICS),
    }
    columns = [(name, setting, start) for name in _small(filling) for setting in starts for start in starts[setting]]
    rows: list[_Row] = []
    for model, title in MODELS.items():
        for stream in STREAMS:
            places = [Place(name, setting, start, model, stream) for name, setting, start in columns]
            words = f"{title}: {STREAM_NAMES[stream]}"
            rows.append((words, [filling.entry(place, paper) for place in places]))
    head = [f"{name}: {setting}, {start}" for name, setting, start in columns]
    note = f"Top-1 in percent. The paper has figures of all streams together.{_of_split(filling)}"
    return _table("Table 4: transfer", note, head, rows)


def _table5(filling: _Filling) -> Table | None:
    """I3D after full fine-tuning, averaged over the splits, and methods of others."""
    paper = figures(5)
    small = [name for name in _small(filling) if filling.datasets[name].splits]
    rows: list[_Row] = []
    for start in (IMAGENET_KINETICS, KINETICS):
        for stream in STREAMS:
            places = [Place(name, "full-ft", start, "i3d", stream) for name in small]
            title = f"I3D, {STREAM_NAMES[stream]}, {start} first"
            rows.append((title, [filling.mean(place, paper) for place in places]))
    table = _table("Table 5: beside other methods", "Top-1 in percent, mean over the splits.", small, rows)
    if table is None:
        return None
    numbers = {"UCF-101": 0, "HMDB-51": 1}
    others = []
    for method, scores in OTHERS.items():
        printed = [scores[numbers[str(filling.datasets[name].paper)]] for name in table.head[1:]]
        others.append((method, *("–" if score is None else f"(paper {score:.1f})" for score in printed)))
    return Table(table.title, table.note, table.head, (*others, *table.rows))


def _small(filling: _Filling) -> list[str]:
    return [name for name, dataset in filling.datasets.items() if dataset.paper != "Kinetics"]


def _of_split(filling: _Filling) -> str:
    return " Split 1." if any(dataset.splits for dataset in filling.datasets.values()) else ""


def _table(title: str, note: str, head: Sequence[str], rows: Sequence[_Row]) -> Table | None:
    """A table without the columns and rows in which nothing was found; None where nothing was."""
    columns = [n for n in range(len(head)) if any(entries[n].found is not None for _, entries in rows)]
    if not columns:
        return None
    kept = [
        (name, *(entries[n].text for n in columns))
        for name, entries in rows
        if any(entry.found is not None for entry in entries)
    ]
    return Table(title, note, ("", *(head[n] for n in columns)), tuple(kept))


def signed(difference: float) -> str:
    """A difference with its sign, such as "+1.2"."""
    words = f"{abs(difference):.1f}"
    return words if float(words) == 0 else f"{'+' if difference > 0 else MINUS}{words}"


def _score(score: Score) -> str:
    return f"{score.top1:.1f}" if score.top5 is None else f"{score.top1:.1f}, {score.top5:.1f}"
