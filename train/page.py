"""The page that compares training runs: one HTML file that needs nothing from outside. What it reads is hostile."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

from manifests.clip import printable
from manifests.files import write_file
from manifests.page import Cell, Html, Number, page, percent, table
from manifests.sample import FormatError
from train.loader import Bad
from train.log import read_metrics
from train.quarantine import FILE as QUARANTINE
from train.quarantine import read_quarantine
from train.report import (
    CURVES,
    loss_curves,
    rate_curves,
    speed_curves,
    validation_curves,
    validation_loss_curves,
)
from train.stream import Inputs

PAGE_BYTES = 2_000_000
FILE_BYTES = 1 << 20  # of config.json
SMALLEST, LARGEST = 1e-100, 1e12  # of a run's numbers, but for 0
SHARES = ("val_top1", "val_top5")
VALUES = ("loss", "lr", "seconds", "waiting_seconds", "epoch", "mean_loss", "val_loss", *SHARES)
QUARANTINE_ROWS = 200
SETTINGS_CELLS = 1000
CHARACTERS = 80  # of a value
MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes:
        name: on the page; no other run's.
        folder: of the run.
        stream: that it trains.
        batch_size: clips a step.
        steps: that it was asked for.
        config: content of `config.json`.
        settings: all of that by dotted names, as printable words.
        lines: of `metrics.jsonl`; their steps, and those of `VALUES` that they have, are numbers that can be drawn.
        quarantined: the first samples that were left out, their words printable and cut.
        bad: how many there are.
    """

    name: str
    folder: Path
    stream: Inputs
    batch_size: int
    steps: int
    config: dict[str, Any]
    settings: dict[str, str]
    lines: list[dict[str, Any]]
    quarantined: list[Bad]
    bad: int


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders of runs.

    Raises:
        FormatError: a folder that is no run's, is damaged, or is named twice; more runs than can be told apart.
        OSError: a file that cannot be read.
    """
    places = [folder.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise FormatError(f"{place}: named more than once")
    if len(places) > CURVES:
        raise FormatError(f"{len(places)} runs: at most {CURVES} curves can be told apart in one picture")
    # As many of the last parts of the paths as tell them apart.
    lengths = range(1, max(len(place.parts) for place in places) + 1)
    length = next(n for n in lengths if len({place.parts[-n:] for place in places}) == len(places))
    return [_read_run(place, printable("/".join(place.parts[-length:]))) for place in places]


def write_page(runs: Sequence[Run], output: Path, clips: Sequence[Html] = (), left_out: Sequence[str] = ()) -> None:
    """Write the page that compares runs.

    Args:
        runs: of `read_runs`.
        output: the HTML file.
        clips: figures of clips and of what was said of them; as many are shown as there is room for.
        left_out: why there are not more of them, in plain sentences.

    Raises:
        OSError: it cannot be written.
    """
    lines = {run.name: run.lines for run in runs}
    sections = [
        _overview(runs),
        f"<h2>Learning</h2>{loss_curves(lines)}{validation_loss_curves(lines)}{validation_curves(lines)}",
        _evaluations(runs),
        f"<h2>Learning rate</h2>{rate_curves(lines)}",
        f"<h2>Speed</h2>{speed_curves(lines, {run.name: run.batch_size for run in runs})}",
        _settings(runs),
        _quarantine(runs),
    ]
    title = f"{len(runs)} training runs" if len(runs) > 1 else f"Training run {runs[0].name}"
    room = PAGE_BYTES - len(page(title, [*sections, *map(_paragraph, left_out)]).encode()) - 1000
    shown = 0
    while shown < len(clips) and (room := room - len(clips[shown].encode())) >= 0:
        shown += 1
    if shown < len(clips):
        left_out = [*left_out, f"{len(clips) - shown} more clips would make the page larger than 2 MB."]
    if clips or left_out:
        sections.append(f"<h2>Clips</h2>{''.join(clips[:shown])}{''.join(map(_paragraph, left_out))}")
    write_file(output.resolve(), page(title, sections).encode())


def _overview(runs: Sequence[Run]) -> str:
    rows: list[Sequence[Cell]] = []
    for run in runs:
        trained = [line for line in run.lines if "loss" in line]
        timed = [line for line in trained if "waiting_seconds" in line and line.get("seconds", 0) > 0]
        seconds = sum(line["seconds"] for line in timed)
        waiting = sum(line["waiting_seconds"] for line in timed)
        done = trained[-1]["step"] if trained else 0
        rows.append(
            (
                run.name,
                run.stream,
                Number(f"{done:,} of {run.steps:,}"),
                Number(f"{trained[-1]['epoch']:.3g}" if trained and "epoch" in trained[-1] else "–"),
                Number(f"{run.batch_size * len(timed) / seconds:.3g}" if seconds else "–"),
                percent(min(waiting / seconds, 1.0)) if seconds else Number("–"),
                run.bad,
            )
        )
    return table(("Run", "Stream", "Steps", "Epochs", "Clips/s", "Waiting for data", "Samples left out"), rows)


def _evaluations(runs: Sequence[Run]) -> str:
    rows: list[Sequence[Cell]] = []
    for run in runs:
        tests = [line for line in run.lines if "mean_loss" in line]
        if not tests:
            continue
        measure = "val_loss" if any("val_loss" in line for line in tests) else "mean_loss"
        best = min(tests, key=lambda line: line.get(measure, math.inf))
        for name, line in {"best": best, "last": tests[-1]}.items():
            if name == "last" and line is best:
                continue
            losses = [Number(f"{line[key]:.4f}" if key in line else "–") for key in ("mean_loss", "val_loss")]
            shares = [percent(line[key]) if key in line else Number("–") for key in SHARES]
            which = "best and last" if best is tests[-1] else name
            rows.append((run.name, which, int(line["step"]), *losses, *shares))
    head = ("Run", "Evaluation", "Step", "Training loss", "Loss", "Top-1", "Top-5")
    words = "<p>Of held-out clips, whole; the best has the lowest loss, of training where nothing was held out.</p>"
    return f"<h2>Evaluations</h2>{words}{table(head, rows)}"


def _settings(runs: Sequence[Run]) -> str:
    names = sorted({name for run in runs for name in run.settings})
    values = {name: [run.settings.get(name, "–") for run in runs] for name in names}
    differ = [name for name in names if len(set(values[name])) > 1]
    same = [name for name in names if len(set(values[name])) == 1]
    most = SETTINGS_CELLS // len(runs)
    found = "<h2>What differs</h2>" if len(runs) > 1 else ""
    if len(runs) > 1:
        rows = ((_name(name), *map(_cut, values[name])) for name in differ[:most])
        found += table(("", *(run.name for run in runs)), rows) + _more(len(differ) - most)
    common = table(("", "In all runs"), ((_name(name), _cut(values[name][0])) for name in same[:most]))
    words = f"{len(same):,} settings are the same in all runs" if len(runs) > 1 else f"{len(same):,} settings"
    return f"{found}<details><summary>{words}</summary>{common}{_more(len(same) - most)}</details>"


def _cut(words: str) -> str:
    return words[:CHARACTERS] + "…" if len(words) > CHARACTERS else words


def _quarantine(runs: Sequence[Run]) -> str:
    if not any(run.bad for run in runs):
        return "<h2>Samples left out</h2><p>None.</p>"
    rows = [(run.name, *sample) for run in runs for sample in run.quarantined]
    more = sum(run.bad for run in runs) - min(len(rows), QUARANTINE_ROWS)
    shown = table(("Run", "Sample", "Shard", "Why"), rows[:QUARANTINE_ROWS])
    return f"<h2>Samples left out</h2>{shown}{_more(more)}"


def _more(number: int) -> str:
    return f"<p>And {number:,} more.</p>" if number > 0 else ""


def _paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def _name(name: str) -> str:
    return name.partition(".")[2] if name.startswith("configuration.") else name


def _read_run(folder: Path, name: str) -> Run:
    config = _read_config(folder)
    settings: Mapping[str, Any] = config["configuration"]
    try:
        words = dict(_words(config))
        metrics = folder / "metrics.jsonl"
        lines = read_metrics(metrics) if metrics.exists() else []
    except RecursionError as error:
        raise FormatError(f"{folder}: config.json or metrics.jsonl is nested too deeply") from error
    for line in lines:
        _check_line(line, metrics)
    stream, batch_size, steps = settings.get("stream"), settings.get("batch_size"), config["session"].get("steps")
    if stream not in get_args(Inputs):  # perhaps a list
        raise FormatError(f"{folder}/config.json: stream {_brief(stream)} is none of {', '.join(get_args(Inputs))}")
    for key, value in (("batch_size", batch_size), ("steps", steps)):
        if not _is_number(value, int) or not value:
            raise FormatError(f"{folder}/config.json: {key} {_brief(value)} is no number of them")
    bad = sum(1 for _ in read_quarantine(folder / QUARANTINE))
    named = islice(read_quarantine(folder / QUARANTINE), QUARANTINE_ROWS)
    quarantined = [Bad(*(printable(words[:MESSAGE_CHARACTERS]) for words in sample)) for sample in named]
    assert isinstance(batch_size, int)
    assert isinstance(steps, int)
    return Run(name, folder, cast(Inputs, stream), batch_size, steps, config, words, lines, quarantined, bad)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise FormatError(f"{folder}: not the folder of a training run: it {what}")
    if file.stat().st_size > FILE_BYTES:
        raise FormatError(f"{file}: {file.stat().st_size} bytes are too many for the configuration of a run")
    try:
        config = json.loads(file.read_bytes())
        for part in ("configuration", "session", "versions"):
            if not isinstance(config[part], dict):
                raise TypeError(f"{part} is {_brief(config[part])}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file}: not the configuration of a run: {_brief(repr(error))}") from error
    return dict(config)


def _words(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value, as words, of all that a JSON value holds."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _words(inner, f"{name}.{key}" if name else key)
    else:
        yield printable(name), printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _check_line(line: dict[str, Any], file: Path) -> None:
    """Raise `FormatError` for a number that cannot be drawn."""
    if not _is_number(line["step"], int):
        raise FormatError(f"{file}: step {_brief(line['step'])} is none")
    for name in VALUES:
        most = 1.0 if name in SHARES else LARGEST
        if name in line and not (_is_number(line[name], int, float) and line[name] <= most):
            raise FormatError(f"{file}: {name} of step {line['step']} is {_brief(line[name])}, not from 0 to {most:g}")


def _is_number(value: Any, *kinds: type) -> bool:
    return type(value) in kinds and (value == 0 or SMALLEST <= value <= LARGEST)


def _brief(value: Any) -> str:
    return printable(str(value)[:CHARACTERS])
