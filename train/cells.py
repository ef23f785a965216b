"""A declarative list of experiments, a TOML file, and the commands that they are: one cell, one command, one folder.

    [datasets.ucf101]               # any name
    shards = "ucf101-stored"        # as i3d-train takes them
    train = "train{split}"          # splits that the data has; {split} is one of `splits`
    test = "test{split}"
    validation = "val"              # where there is one: else a part of `train` is held out to choose the rate
    splits = [1, 2, 3]              # only where splits overlap
    paper = "UCF-101"               # the paper's figures for UCF-101, HMDB-51 or Kinetics stand beside
    same = true                     # false: it stands in that data set's place, and differences mean nothing

    [starts]                        # which weights a network begins with
    scratch = ""
    kinetics = "{output}/kinetics/original-scratch/{model}-{stream}/network.pt"

    [options]                       # of i3d-transfer, for all cells; [[cells]] may have options of their own,
                                    # and `shards` for some of a data set's cells
    steps = 5000

    [[cells]]                       # each combination of these that exists, in this order
    datasets = ["ucf101"]
    splits = [1]
    settings = ["full-ft"]
    starts = ["kinetics"]
    models = ["i3d"]
    streams = ["rgb", "flow", "both"]
    seeds = [0, 1, 2]               # where there are several: a cell for each; {seed} may stand in starts

    [[differences]]                 # of two cells each, on the same clips: for each combination of the lists
    title = "Two streams against flow alone"
    datasets = ["ucf101"]
    settings = ["full-ft"]
    starts = ["kinetics"]
    models = ["i3d"]
    first = { stream = "both" }     # what the two differ in: dataset aside, any of setting, start, model, stream
    second = { stream = "flow" }

Starts named scratch, imagenet, kinetics and imagenet+kinetics are those of the paper's tables; others may be added.

A cell lies in OUTPUT/DATASET[-SPLIT]/SETTING-START/MODEL-STREAM[-seedN]/, with what was found in result.json, and
beside that folder, once that is done, what it is of. RGB and flow together are of I3D two networks, whose cells must
stand before: i3d-eval tests them together. All else is i3d-transfer's.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from manifests.sample import FormatError
from model import Architecture
from train.paper import DATASETS, SCRATCH, Place
from train.stream import Inputs
from train.transfer import NETWORK, RESULT, Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The options of i3d-transfer that i3d-eval takes, too.
TESTING = ("crop", "crops", "flips", "precision", "max-bad", "workers")
FUSION = "fusion-weights"  # of two networks that are tested together, so of i3d-eval alone
# Options that change how a cell is come by, not what it is.
HOW = (
    *("launcher", "workers", "cache", "cache-gigabytes", "compile", "checkpoint-activations", "checkpoint-every"),
    *("max-bad", "features"),
)
# What a cell's place decides, and no option may say otherwise.
_DECIDED = {
    *("model", "stream", "setting", "init", "output", "train-split", "test-split", "val-split"),
    *("split", "json", "rgb", "flow", "both", "help"),
}
_BRACES = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]*")
_DATASET_KEYS = {"shards", "train", "test", "validation", "splits", "paper", "same"}
_GROUP_KEYS = {"datasets", "splits", "settings", "starts", "models", "streams", "seeds", "options"}
_DIFFERENCE_KEYS = {"title", "datasets", "settings", "starts", "models", "streams", "first", "second"}
_Axes = Mapping[str, tuple[str, ...]]  # what may stand in a list of each, in the order of `Place`
_Value = str | int | float | bool


@dataclass(frozen=True)
class Dataset:
    """Data that networks are trained and tested on; what the module's example says of each."""

    name: str
    shards: str
    train: str
    test: str
    validation: str | None
    splits: tuple[int, ...]
    paper: str | None
    same: bool


@dataclass(frozen=True)
class Cell:
    """One figure to find.

    Attributes:
        place: what it is; its dataset is the file's name for it.
        split: of the dataset, where splits overlap.
        seed: where the list has several.
        folder: where it lies.
        command: program and arguments.
        needs: files that the command reads.
        identity: JSON of all that decides what it finds, but for the contents of files.
    """

    place: Place
    split: int | None
    seed: int | None
    folder: Path
    command: tuple[str, ...]
    needs: tuple[Path, ...]
    identity: str

    @property
    def note(self) -> Path:
        """The file that says what the result beside it is of."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def name(self) -> str:
        """The last parts of its folder."""
        return "/".join(self.folder.parts[-3:])


@dataclass(frozen=True)
class Difference:
    """A comparison: in each row pairs of cells of one split and seed, by what the pairs have in common."""

    title: str
    rows: Mapping[str, tuple[tuple[Cell, Cell], ...]]


@dataclass(frozen=True)
class CellList:
    """A file's cells in their order, the data sets that they are of, and what is compared."""

    cells: tuple[Cell, ...]
    datasets: Mapping[str, Dataset]
    differences: tuple[Difference, ...]


def read_cells(file: Path, output: Path) -> CellList:
    """Read a list of cells.

    Args:
        file: TOML, see above. Paths in it are relative to where commands are run.
        output: folder of all cells.

    Raises:
        FormatError: not TOML, an unknown or missing key, a wrong value; the message says where.
        OSError: it cannot be read.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return _cells_of(content, output)
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise FormatError(f"{file}: not a list of cells: {error}") from error


def _cells_of(content: dict[str, Any], output: Path) -> CellList:
    _only(content, {"datasets", "starts", "options", "cells", "differences"}, "the file")
    datasets = {name: _dataset(name, some) for name, some in _table(content, "datasets").items()}
    starts = {SCRATCH: "", **_table(content, "starts")}
    for name, start in starts.items():
        _require(_is_name(name) and isinstance(start, str), f"starts.{name}: want a name, and a path or nothing")
        fits = (start == "") == (name == SCRATCH)
        _require(fits, f"starts.{name} is {start!r}: {SCRATCH} begins with nothing, each other with a path")
    common = _options(content.get("options", {}), "options")
    axes: _Axes = {
        "datasets": tuple(datasets),
        "settings": get_args(Setting),
        "starts": tuple(starts),
        "models": get_args(Architecture),
        "streams": get_args(Inputs),
    }
    cells: dict[Path, Cell] = {}
    seeded: dict[Place, bool] = {}
    for where, group in _groups(content, "cells"):
        for cell in _group(group, where, axes, datasets, starts, common, output):
            _require(cell.folder not in cells, f"{where}: {cell.name} stands in an earlier one")
            cells[cell.folder] = cell
            same = seeded.setdefault(cell.place, cell.seed is not None) == (cell.seed is not None)
            _require(same, f"{where}: {cell.name} stands in an earlier one, and one of them alone has seeds")
    _require(bool(cells), "cells: want [[cells]], one or several")
    every = tuple(cells.values())
    differences = (_difference(group, where, axes, every) for where, group in _groups(content, "differences"))
    return CellList(every, datasets, tuple(differences))


def _groups(content: Mapping[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of [[name]], with where each stands."""
    found = content.get(name, [])
    _require(isinstance(found, list), f"{name}: want [[{name}]]")
    for number, group in enumerate(found, start=1):
        where = f"{name}, number {number}"
        _require(isinstance(group, dict), f"{where}: want a table")
        yield where, group


def _dataset(name: str, some: Any) -> Dataset:
    where = f"datasets.{name}"
    _require(_is_name(name) and isinstance(some, dict), f"{where}: want a name and a table")
    _only(some, _DATASET_KEYS, where)
    for key in ("shards", "train", "test"):
        _require(isinstance(some.get(key), str) and some[key] != "", f"{where}: {key} is missing, or no text")
    validation, paper = some.get("validation"), some.get("paper")
    _require(validation is None or isinstance(validation, str), f"{where}: validation {validation!r} is no text")
    _require(paper is None or paper in DATASETS, f"{where}: paper is {paper!r}, want one of {', '.join(DATASETS)}")
    splits = some.get("splits", [])
    _require(
        isinstance(splits, list) and all(type(split) is int and split > 0 for split in splits),
        f"{where}: splits are {splits!r}, want numbers from 1 on",
    )
    same = some.get("same", True)
    _require(isinstance(same, bool), f"{where}: same is {same!r}, want true or false")
    return Dataset(name, some["shards"], some["train"], some["test"], validation, tuple(splits), paper, same)


def _group(
    group: Mapping[str, Any],
    where: str,
    axes: _Axes,
    datasets: Mapping[str, Dataset],
    starts: Mapping[str, str],
    common: Mapping[str, _Value],
    output: Path,
) -> list[Cell]:
    """The cells of one [[cells]], those combinations left out that no network is for."""
    _only(group, _GROUP_KEYS, where)
    options = {**common, **_options(group.get("options", {}), f"{where}: options")}
    seeds = _seeds(group, options, where)
    cells = []
    for chosen in product(*(_listed(group, key, axes, where) for key in axes)):
        place = Place._make(chosen)
        dataset, setting, start = datasets[place.dataset], place.setting, place.start
        fits = setting == "original" or start != SCRATCH
        _require(fits, f"{where}: {setting} begins with a network of other data, not from {SCRATCH}")
        if _exists(place):
            for split, seed in product(_splits(group, dataset, where), seeds):
                cells.append(_cell(place, split, seed, dataset, starts[start], options, output, where))
    _require(bool(cells), f"{where}: none of its combinations is a network's")
    return cells


def _listed(group: Mapping[str, Any], key: str, axes: _Axes, where: str) -> list[str]:
    """What a group lists of an axis."""
    found = group.get(key)
    _require(isinstance(found, list) and bool(found), f"{where}: {key} is missing, or no list")
    assert isinstance(found, list)
    for value in found:
        _require(value in axes[key], f"{where}: {key} has {value!r}, want one of {', '.join(axes[key])}")
    return found


def _difference(group: Mapping[str, Any], where: str, axes: _Axes, cells: Sequence[Cell]) -> Difference:
    _only(group, _DIFFERENCE_KEYS, where)
    title = group.get("title")
    _require(isinstance(title, str) and title.strip() != "", f"{where}: title is {title!r}, want text")
    axis_of = dict(zip(Place._fields, axes, strict=True))
    first, second = (_side(group, name, axis_of, axes, where) for name in ("first", "second"))
    fits = set(first) == set(second) and first != second
    _require(fits, f"{where}: first and second want other values of the same, not {first!r} and {second!r}")
    doubled = [axis_of[name] for name in first if axis_of[name] in group]
    _require(not doubled, f"{where}: {', '.join(doubled)} beside first and second, which say it")
    shared = [name for name in axis_of if name not in first]
    found = {(cell.place, cell.split, cell.seed): cell for cell in cells}
    rows = {}
    for chosen in product(*(_listed(group, axis_of[name], axes, where) for name in shared)):
        common = dict(zip(shared, chosen, strict=True))
        one, other = (Place._make({**common, **side}[name] for name in Place._fields) for side in (first, second))
        which = [(split, seed) for place, split, seed in found if place == one and (other, split, seed) in found]
        if which:
            rows[", ".join(chosen)] = tuple((found[one, s, n], found[other, s, n]) for s, n in which)
    _require(bool(rows), f"{where}: the list has no two cells, of one split and seed, that differ so")
    return Difference(str(title), rows)


def _side(group: Mapping[str, Any], side: str, axis_of: Mapping[str, str], axes: _Axes, where: str) -> dict[str, str]:
    """What one of the two that are compared is."""
    found = group.get(side)
    names = Place._fields[1:]  # tests of two data sets have no clips in common
    fits = isinstance(found, dict) and bool(found) and set(found) <= set(names)
    _require(fits, f"{where}: {side} is {found!r}, want a table of any of {', '.join(names)}")
    assert isinstance(found, dict)
    for name, value in found.items():
        known = axes[axis_of[name]]
        _require(value in known, f"{where}: {side} has {name} {value!r}, want one of {', '.join(known)}")
    return found


def _exists(place: Place) -> bool:
    """Whether the paper has such a network: its LSTM and its 3D-ConvNet see RGB alone."""
    return place.stream == "rgb" or place.model in ("two-stream", "fused", "i3d")


def _splits(group: Mapping[str, Any], dataset: Dataset, where: str) -> tuple[int | None, ...]:
    if not dataset.splits:
        return (None,)
    chosen = group.get("splits", list(dataset.splits))
    _require(isinstance(chosen, list) and bool(chosen), f"{where}: splits are {chosen!r}, want a list")
    for split in chosen:
        fits = type(split) is int and split in dataset.splits
        _require(fits, f"{where}: split {split!r} is none of {dataset.name}'s {dataset.splits}")
    return tuple(chosen)


def _seeds(group: Mapping[str, Any], options: dict[str, _Value], where: str) -> tuple[int | None, ...]:
    if "seeds" not in group:
        return (None,)
    seeds = group["seeds"]
    fits = isinstance(seeds, list) and bool(seeds) and all(type(seed) is int and 0 <= seed < 1 << 32 for seed in seeds)
    _require(fits, f"{where}: seeds are {seeds!r}, want numbers from 0 to {(1 << 32) - 1}")
    _require("seed" not in options, f"{where}: seeds beside the option seed, which says it")
    return tuple(seeds)


def _cell(
    place: Place,
    split: int | None,
    seed: int | None,
    dataset: Dataset,
    start: str,
    options: Mapping[str, _Value],
    output: Path,
    where: str,
) -> Cell:
    name = dataset.name if split is None else f"{dataset.name}-{split}"
    group = output / name / f"{place.setting}-{place.start}"
    ending = "" if seed is None else f"-seed{seed}"
    folder = group / f"{place.model}-{place.stream}{ending}"
    if seed is not None:
        options = {**options, "seed": seed}
    data, test = str(options.get("shards", dataset.shards)), _filled(dataset.test, where, split=split)
    options = {name: value for name, value in options.items() if name != "shards"}
    together = place.model == "i3d" and place.stream == "both"
    if together:
        networks = [group / f"i3d-{stream}{ending}" / NETWORK for stream in ("rgb", "flow")]
        command = ["i3d-eval", "--shards", data, "--split", test, "--rgb", str(networks[0]), "--flow", str(networks[1])]
        command += ["--json", str(folder / RESULT)]
        # i3d-eval knows no --precision auto: its own default is what i3d-transfer tests with then.
        options = {name: value for name, value in options.items() if name in (*TESTING, FUSION) and value != "auto"}
    else:
        networks = []
        command = ["i3d-transfer", "--shards", data, "--output", str(folder)]
        command += ["--train-split", _filled(dataset.train, where, split=split), "--test-split", test]
        if dataset.validation is not None:
            command += ["--val-split", _filled(dataset.validation, where, split=split)]
        command += ["--model", place.model, "--stream", place.stream, "--setting", place.setting]
        if start:
            words = {"model": place.model, "stream": place.stream, "split": split, "seed": seed, "output": output}
            networks = [Path(_filled(start, where, **words))]
            command += ["--init", str(networks[0])]
        others = (FUSION, "launcher") if place.setting == "fixed" else (FUSION,)  # its features want no ranks
        options = {name: value for name, value in options.items() if name not in others}
    command += _as_words(options)
    decides = {name: value for name, value in options.items() if name not in HOW}
    identity = json.dumps([place, split, seed, asdict(dataset), data, start, decides], sort_keys=True)
    return Cell(place, split, seed, folder, tuple(command), tuple(networks), identity)


def _filled(text: str, where: str, **words: object) -> str:
    """A text with the words in braces filled in; FormatError for other braces."""
    known = {name: str(word) for name, word in words.items() if word is not None}
    for name in _BRACES.findall(text):
        _require(
            name in known, f"{where}: {text!r} has {{{name}}}, and nothing stands for it; known: {', '.join(known)}"
        )
    return _BRACES.sub(lambda match: known[match[1]], text)


def _as_words(options: Mapping[str, _Value]) -> list[str]:
    """Options as they are typed: `true` is the option alone, `false` its --no- form."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def _options(found: Any, where: str) -> dict[str, _Value]:
    _require(isinstance(found, dict), f"{where}: want a table")
    for name, value in found.items():
        fits = _is_name(name) and isinstance(value, str | int | float)
        _require(fits, f"{where}: {name} = {value!r}: want an option's name and one value")
        _require(name not in _DECIDED, f"{where}: {name} = {value!r}: a cell's place decides that")
    return dict(found)


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name, {})
    _require(isinstance(found, dict), f"{name}: want a table")
    return dict(found)


def _only(found: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in found:
        _require(key in keys, f"{where} has {key!r}, want one of {', '.join(sorted(keys))}")


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and ".." not in text


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise FormatError(message)
