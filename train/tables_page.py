"""Tables as a page with what lies behind each figure, and as Markdown. What is read of cells is not trusted."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from manifests.clip import printable
from manifests.page import Cell as PageCell
from manifests.page import Html, Number, cards, page, percent, table
from manifests.sample import FormatError
from train.cells import Cell
from train.log import read_metrics
from train.paper import MODELS
from train.report import CURVES, loss_curves, validation_curves
from train.table1 import PAPER, table_row
from train.tables import DAMAGED, STREAM_NAMES, Results, Table, found_of

GOOD, BAD = "#2a9d55", "#d9541e"  # colours of a confusion matrix
MATRIX_CLASSES = 30  # of a confusion matrix that is drawn; of a larger one the most frequent confusions are named
HARDEST, CONFUSIONS, DISAGREEMENTS = 10, 20, 20
TABLE_1_HEAD = ("", "", "parameters", "frames, training", "footprint", "frames, test", "footprint")


def tables_page(title: str, tables: Sequence[Table], results: Results, cells: int) -> str:
    """The HTML page.

    Args:
        title: plain text.
        tables: 2 to 5, as far as there are any.
        results: of the cells that are done.
        cells: how many there are to be.

    Raises:
        FormatError: a result without the parts that i3d-eval writes.
    """
    sections: list[str] = [cards({"cells done": f"{len(results):,} of {cells:,}"}), _table1()]
    for some in tables:
        sections += [f"<h2>{escape(printable(some.title))}</h2><p>{escape(some.note)}</p>", table(some.head, some.rows)]
    groups: dict[str, dict[Cell, dict[str, Any]]] = {}
    for cell, result in results.items():
        groups.setdefault("/".join(cell.folder.parts[-3:-1]), {})[cell] = result
    try:
        for name, group in groups.items():
            sections += [
                f"<h2>{escape(printable(name))}</h2>",
                _curves(group),
                *_details(group),
                *_disagreements(group),
            ]
    except DAMAGED as error:
        raise FormatError(f"a result of {name} is not what i3d-eval writes: {error!r}") from error
    return page(title, sections)


def tables_markdown(tables: Sequence[Table]) -> str:
    """The tables alone, as Markdown."""
    parts = []
    for some in tables:
        lines = [some.head, ("---",) * len(some.head), *some.rows]
        rows = "\n".join(f"| {' | '.join(_markdown(cell) for cell in line)} |" for line in lines)
        parts.append(f"**{_markdown(some.title)}.** {some.note}\n\n{rows}\n")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    """Plain text as Markdown shows it, on one line."""
    return re.sub(r"([\\|<*`]|(?<=\])\()", r"\\\1", " ".join(printable(text).split()))


def _table1() -> str:
    rows: list[Sequence[PageCell]] = []
    for model, title in MODELS.items():
        rows.append((title, "paper", *PAPER[model]))
        rows.append(("", "this code", *table_row(model)))
    return f"<h2>Table 1: the architectures</h2>{table(TABLE_1_HEAD, rows)}"


def _curves(group: Results) -> str:
    """Loss and held-out clips right over the steps of the trainings below these cells."""
    lines = {}
    for cell in group:
        for metrics in sorted(cell.folder.glob("**/metrics.jsonl")):
            name = "/".join((cell.folder.name, *metrics.parent.relative_to(cell.folder).parts))
            lines[printable(name)] = read_metrics(metrics)
    shown = dict(list(lines.items())[:CURVES])
    return (
        f"<details><summary>Curves</summary>{loss_curves(shown)}{validation_curves(shown)}</details>" if shown else ""
    )


def _details(group: Results) -> Iterator[str]:
    """Of each cell: its shares, the confusions, the hardest classes."""
    for cell, result in group.items():
        found = found_of(result)
        seed = "" if cell.seed is None else f", seed {cell.seed}"
        title = f"{MODELS[cell.place.model]}, {STREAM_NAMES[cell.place.stream]}{seed}: {found.top1:.1f} %"
        clips = result["clip_list"]
        missing = "unknown" if clips["missing"] is None else f"{len(clips['missing']):,}"
        said = cards(
            {
                "top-1, 95 %": f"{found.low:.1f}–{found.high:.1f} %",
                "top-5": percent(float(result["top5"])),
                "mean over classes": percent(float(result["mean_class_accuracy"])),
                "clips": int(clips["found"]),
                "missing": missing,
                "could not be read": str(len(clips["unreadable"])),
            }
        )
        if "left_out" in result:
            said = Html(
                f"{said}<p>Clips to train or validate on that could not be read: {len(result['left_out']):,}.</p>"
            )
        yield (
            f"<details><summary>{escape(title)}</summary>{said}<h3>Hardest classes</h3>{_hardest(result)}"
            f"<h3>Confusions</h3>{_confusion(result)}{_provenance(result)}</details>"
        )


def _hardest(result: Mapping[str, Any]) -> str:
    rows = sorted(result["per_class"], key=lambda row: (float(row["top1"]), str(row["label"])))[:HARDEST]
    return table(
        ("class", "clips", "right"),
        [(printable(row["label"]), int(row["clips_labelled"]), percent(float(row["top1"]))) for row in rows],
    )


def _confusion(result: Mapping[str, Any]) -> str:
    """The matrix, true classes down and answers across; of many classes the most frequent wrong answers."""
    labels = [printable(label) for label in result["labels"]]
    counts = [[int(count) for count in row] for row in result["confusion"]]
    if len(labels) > MATRIX_CLASSES:
        wrong = Counter({(i, j): n for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j})
        rows = [(labels[i], labels[j], n) for (i, j), n in wrong.most_common(CONFUSIONS)]
        return table(("is", "was taken for", "clips"), rows)
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows_html = []
    for label, row in zip(labels, counts, strict=True):
        total = max(1, sum(row))
        cells = "".join(
            f'<td class="n" style="background:{GOOD if other == label else BAD}{200 * n // total:02x}">{n}</td>'
            for other, n in zip(labels, row, strict=True)
        )
        rows_html.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th>is, was taken for</th>{head}</tr>{"".join(rows_html)}</table></div>'


def _provenance(result: Mapping[str, Any]) -> str:
    rows = {
        "clip list": result["clip_list"]["sha256"],
        "split": result["split"],
        "snapshot": result["snapshot"],
        **{f"protocol: {name}": value for name, value in result["protocol"].items()},
        **{f"checkpoint {name}": value["sha256"] for name, value in result["checkpoints"].items()},
    }
    if "chosen" in result:
        rows["rate"] = result["chosen"]["rate"]
        rows |= {
            f"rate {some['rate']:g}, loss on validation": some["val_loss"] for some in result["chosen"]["candidates"]
        }
    told = [(name, printable("–" if value is None else _words(value))) for name, value in rows.items()]
    return "<h3>Of what</h3>" + table(("", ""), told)


def _words(value: object) -> str:
    """A value of JSON as it is read."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {some}" for name, some in value.items())
    return str(value)


def _disagreements(group: Results) -> Iterator[str]:
    """Clips that RGB or flow alone got right, of each model that has both; of several seeds the first."""
    found = {(cell.place.model, cell.place.stream, cell.seed): result for cell, result in group.items()}
    for model in MODELS:
        both = [seed for m, stream, seed in found if (m, stream) == (model, "rgb") and (m, "flow", seed) in found]
        if both:
            seed = "" if both[0] is None else f", seed {both[0]}"
            title = f"{MODELS[model]}{seed}: where RGB and flow disagree"
            yield _disagreement(title, found[model, "rgb", both[0]], found[model, "flow", both[0]])


def _disagreement(title: str, rgb: Mapping[str, Any], flow: Mapping[str, Any]) -> str:
    by_flow = {clip["key"]: clip["top5"][0]["label"] for clip in flow["clips"]}
    right: Counter[tuple[bool, bool]] = Counter()
    rows: list[Sequence[PageCell]] = []
    for clip in rgb["clips"]:
        key, label, says = clip["key"], clip["label"], clip["top5"][0]["label"]
        if label is None or key not in by_flow:
            continue
        rgb_right, flow_right = says == label, by_flow[key] == label
        right[rgb_right, flow_right] += 1
        if rgb_right != flow_right:
            rows.append(tuple(printable(str(word)) for word in (key, label, says, by_flow[key])))
    total = max(1, sum(right.values()))
    shares: dict[str, PageCell] = {
        "both right": _share(right[True, True], total),
        "RGB alone": _share(right[True, False], total),
        "flow alone": _share(right[False, True], total),
        "neither": _share(right[False, False], total),
    }
    few = f"<p>The first {DISAGREEMENTS} of {len(rows):,}.</p>" if len(rows) > DISAGREEMENTS else ""
    listed = table(("clip", "is", "RGB says", "flow says"), rows[:DISAGREEMENTS])
    return f"<details><summary>{escape(title)}</summary>{cards(shares)}{few}{listed}</details>"


def _share(count: int, total: int) -> Number:
    return percent(count / total)
