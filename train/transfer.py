"""One cell of the paper's table 4: a network from scratch, a classifier of frozen features, or fine-tuning (§5).

CELL/cell.json        what decides the result
CELL/rate-…/          a run of i3d-train for each learning rate, where there are several to choose from
CELL/final/           the run on all training clips with the rate that was chosen
CELL/features/        of "fixed": the features of clips, by `train.frozen`
CELL/network.pt       the network that was tested
CELL/result.json      what i3d-eval found, and how the network came about
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from manifests.files import canonical_json, complete_file, remove_partial_files, write_file
from manifests.lease import lease
from manifests.sample import FormatError, differences
from model import Architecture
from train.children import ProgramFailed, run_program
from train.loader import Bad
from train.log import read_metrics
from train.quarantine import FILE, read_quarantine
from train.run import DIVERGED, RunError
from train.stream import Inputs

Setting = Literal["original", "fixed", "full-ft"]

_CELL = "cell.json"
RESULT = "result.json"
NETWORK = "network.pt"
_MADE = (NETWORK, "*/checkpoints/*.pt", f"*/{DIVERGED}")


@dataclass(frozen=True)
class Cell:
    """All that decides the result of a cell; to go on with one, it must be the same.

    Attributes:
        model: the architecture.
        stream: what it sees.
        setting: "original" trains from the initial weights if any, else from scratch; "fixed" trains the last layer
            of the frozen network; "full-ft" trains all of it.
        initial: SHA-256 of the files of the checkpoint to begin with.
        rates: learning rates to choose from.
        hold_out: share of the training clips that the rate is chosen on; None where there is a validation split, or no
            choice.
        steps: of each training.
        batch_size: clips a step.
        crop: in pixels.
        options: what else the user typed of i3d-train's options, and of i3d-eval's `crops` and `flips`, by keyword.
        data: `train.run.identity` of the training clips.
        validation: of the clips of the validation split, if it is used.
        test: of the test clips.
    """

    model: Architecture
    stream: Inputs
    setting: Setting
    initial: dict[str, str] | None
    rates: tuple[float, ...]
    hold_out: float | None
    steps: int
    batch_size: int
    crop: int
    options: dict[str, Any]
    data: dict[str, Any]
    validation: dict[str, Any] | None
    test: dict[str, Any]


@dataclass(frozen=True)
class Programs:
    """How i3d-train and i3d-eval are called for a cell.

    Attributes:
        train: i3d-train with everything but its rate, its clips to test on and its folder; perhaps with a launcher.
        evaluate: i3d-eval with everything but the network and the file of its result.
        validation: options of the validation split; none where there is none.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A learning rate, and what the network had come to at the end of a training with it; None where it diverged."""

    rate: float
    val_top1: float | None
    val_loss: float | None


def run_cell(
    folder: Path, cell: Cell, programs: Programs, fix: Callable[[], tuple[list[Candidate], list[Bad]]] | None = None
) -> dict[str, Any]:
    """Do what is missing of a cell: choose the learning rate, train, test.

    Args:
        folder: of the cell.
        cell: what it is.
        programs: how to train and test.
        fix: of "fixed", instead of i3d-train: try the rates and write `NETWORK`; gives what each came to, and the
            clips that could not be read.

    Returns:
        `result.json`: what i3d-eval says of the network on the test clips, `model`, `stream`, `setting`, `initial`,
        `steps`, `batch_size`, `chosen`: the rate, the share held out to choose it, and what each rate came to, and
        `left_out`: clips to train or validate on that could not be read.

    Raises:
        RunError: the folder holds another cell or other files, all candidates diverged, or a training was stopped.
        ProgramFailed: a program ended with an error.
        LeaseHeld: another process works on the cell.
        FormatError: what lies in the folder is damaged.
        OSError: a file that cannot be read or written.
    """
    with lease(folder):
        _claim(folder, cell)
        result = folder / RESULT
        if result.exists():
            return _read(result)
        if fix is not None:
            candidates, left_out = fix()
            rate = best_of(candidates).rate if candidates else cell.rates[0]
        else:
            candidates = (
                [_candidate(folder, cell, programs, rate) for rate in cell.rates] if len(cell.rates) > 1 else []
            )
            rate = best_of(candidates).rate if candidates else cell.rates[0]
            run = _trained(folder, cell, programs, rate)
            left_out = list(read_quarantine(run / FILE))
            _copy(run / "model.pt", folder / NETWORK)
        tested = folder / "test.json"
        run_program((*programs.evaluate, f"--{cell.stream}", str(folder / NETWORK), "--json", str(tested)))
        found = {
            **_read(tested),
            "model": cell.model,
            "stream": cell.stream,
            "setting": cell.setting,
            "initial": cell.initial,
            "steps": cell.steps,
            "batch_size": cell.batch_size,
            "chosen": {
                "rate": rate,
                "hold_out": cell.hold_out,
                "candidates": [asdict(candidate) for candidate in candidates],
            },
            "left_out": [{"key": bad.key, "message": bad.message} for bad in left_out],
        }
        words = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        write_file(result, words.encode() + b"\n")
        tested.unlink()
        return found


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the lowest validation loss, by which i3d-train keeps its best network as well.

    A held-out share has few clips: of rates that are right equally often, or that all guess, the loss still tells.

    Raises:
        RunError: all diverged.
    """
    finite = [(c.val_loss, c) for c in candidates if c.val_loss is not None and math.isfinite(c.val_loss)]
    if not finite:
        rates = ", ".join(f"{candidate.rate:g}" for candidate in candidates)
        raise RunError(f"training diverged with each of the learning rates {rates}: give lower --rates")
    return min(finite, key=lambda found: found[0])[1]


def _claim(folder: Path, cell: Cell) -> None:
    """Make a folder this cell's; raise `RunError` where it is another's. One that came to nothing is begun anew."""
    file = folder / _CELL
    wanted = json.loads(canonical_json(asdict(cell)))
    remove_partial_files(folder)
    if not file.exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise RunError(f"{folder}: holds other files; choose an --output that is empty or not there yet")
        write_file(file, canonical_json(wanted))
    elif changed := differences(_read(file), wanted):
        if any(next(folder.glob(made), None) for made in _MADE):
            raise RunError(f"{folder}: holds another cell: {', '.join(changed)}")
        write_file(file, canonical_json(wanted))


def snapshot_of(folder: Path) -> str | None:
    """The dataset's snapshot that the cell in a folder began with; None where there is no cell, or no snapshot.

    Raises:
        FormatError: the cell is damaged.
    """
    file = folder / _CELL
    data = _read(file).get("data") if file.exists() else None
    snapshot = data.get("snapshot") if isinstance(data, dict) else None
    return snapshot if isinstance(snapshot, str) else None


def _candidate(folder: Path, cell: Cell, programs: Programs, rate: float) -> Candidate:
    """Train with a rate and look at what it came to on validation clips."""
    run = folder / f"rate-{rate!r}"
    held_out = () if cell.hold_out is None else ("--hold-out", repr(cell.hold_out))
    if not (run / DIVERGED).exists():
        try:
            last = _train(run, cell, programs, rate, held_out or programs.validation)
            return Candidate(rate, last["val_top1"], last["val_loss"])
        except ProgramFailed:
            if not (run / DIVERGED).exists():
                raise
    return Candidate(rate, None, None)


def _trained(folder: Path, cell: Cell, programs: Programs, rate: float) -> Path:
    """The run of the network to test: the candidate's, or where clips were held out one more on all of them."""
    chosen = len(cell.rates) > 1 and cell.hold_out is None
    run = folder / (f"rate-{rate!r}" if chosen else "final")
    _train(run, cell, programs, rate, programs.validation)
    return run


def _train(run: Path, cell: Cell, programs: Programs, rate: float, clips: Sequence[str]) -> dict[str, Any]:
    """Train to the end, unless that is done; gives the last evaluation."""
    last = _last_evaluation(run, cell.steps)
    if last is None:
        run_program((*programs.train, *clips, "--lr", repr(rate), "--output", str(run), "--resume", "auto"))
        last = _last_evaluation(run, cell.steps)
    if last is None:
        raise RunError(f"{run}: its training was stopped before its {cell.steps} steps; the same command goes on")
    return last


def _last_evaluation(run: Path, steps: int) -> dict[str, Any] | None:
    """What a run's evaluation after `steps` steps found; None where it has not come to it."""
    file = run / "metrics.jsonl"
    lines = read_metrics(file) if file.exists() else []
    return next((line for line in reversed(lines) if line["step"] == steps and "mean_loss" in line), None)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file, complete_file(target) as copy:
        shutil.copyfileobj(file, copy)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{file}: damaged: {error!r}") from error
