"""What training and evaluation found, as pieces of an HTML page that need nothing from outside."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

COLOURS = ("#2f6fdb", "#d9541e", "#7a7a7a", "#2a9d55", "#8e44ad")
SMOOTHING_STEPS = 10
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 56
TEXT = 'font-size="18" fill="currentColor"'

Curve = tuple[Sequence[float], Sequence[float]]


def loss_curves(runs: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Training loss over steps, each point the mean of the last few, one line for each run's `metrics.jsonl`."""
    curves = {}
    for name, lines in runs.items():
        losses = np.array([line["loss"] for line in lines if "loss" in line])
        sums = np.cumsum(np.concatenate([[0.0], losses]))
        last = np.arange(1, len(losses) + 1)
        first = np.maximum(last - SMOOTHING_STEPS, 0)
        steps = [line["step"] for line in lines if "loss" in line]
        curves[name] = (steps, ((sums[last] - sums[first]) / (last - first)).tolist())
    return line_chart(f"Training loss, mean of {SMOOTHING_STEPS} steps", "step", curves)


def validation_curves(runs: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Top-1 share of held-out clips over steps; empty where no run was validated."""
    curves = {}
    for name, lines in runs.items():
        points = [(line["step"], line["val_top1"]) for line in lines if "val_top1" in line]
        if points:
            steps, shares = zip(*points, strict=True)
            curves[name] = (steps, shares)
    return line_chart("Held-out clips right", "step", curves, highest=1.0) if curves else ""


def line_chart(title: str, x_name: str, curves: Mapping[str, Curve], highest: float | None = None) -> str:
    """Curves as an SVG in a figure: x and y from 0 to the largest value, or y to `highest`."""
    x_end = _round_up(max(max(x, default=1) for x, _ in curves.values()))
    y_end = highest or _round_up(max(max(y, default=1) for _, y in curves.values()))

    def place(x: float, y: float) -> str:
        across = LEFT + x / x_end * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - y / y_end * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        (left, level), right = place(0, share * y_end).split(","), WIDTH - RIGHT
        parts.append(
            f'<path d="M{left} {level}H{right}" stroke="currentColor" opacity=".2"/>'
            f'<text x="{LEFT - 8}" y="{level}" dy="6" text-anchor="end" {TEXT}>{share * y_end:g}</text>'
        )
    for share in (0, 0.5, 1):
        across = place(share * x_end, 0).split(",")[0]
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        words = f"{share * x_end:g}" if share else f"0 {escape(x_name)}"
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 26}" text-anchor="{anchor}" {TEXT}>{words}</text>')
    for colour, (x, y) in zip(COLOURS, curves.values(), strict=False):
        points = [place(*point) for point in zip(x, y, strict=True)]
        dots = "".join('<circle cx="{}" cy="{}" r="4"/>'.format(*p.split(",")) for p in points if len(points) < 20)
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><polyline fill="none" stroke-width="3" points="{" ".join(points)}"/>'
            f"{dots}</g>"
        )
    legend = " ".join(
        f'<span style="white-space:nowrap"><span style="color:{colour}">━━</span> {escape(name)}</span>'
        for colour, name in zip(COLOURS, curves, strict=False)
    )
    return (
        f'<figure><figcaption>{escape(title)}: {legend}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" style="width:100%;max-width:{WIDTH}px">{"".join(parts)}</svg></figure>'
    )


def per_class_table(found: dict[str, Any]) -> str:
    """Share of clips right by class and stream, from an evaluation's JSON, the total last."""
    streams = list(found["streams"])
    together = ["both"] if len(streams) > 1 else []
    head = "".join(f"<th>{escape(name)}</th>" for name in ["Class", "Clips", *streams, *together])
    rows = [_shares_row(row["label"], row, streams, together) for row in found["per_class"]]
    rows.append(_shares_row("all", found, streams, together))
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _shares_row(name: str, shares: dict[str, Any], streams: Sequence[str], together: Sequence[str]) -> str:
    values = [shares["streams"][stream]["top1"] for stream in streams] + [shares["top1"] for _ in together]
    cells = "".join(
        f'<td class="n" style="background:linear-gradient(90deg,#2a9d5544 {value:.0%},transparent {value:.0%})">'
        f"{value:.0%}</td>"
        for value in values
    )
    return f'<tr><td>{escape(name)}</td><td class="n">{shares["clips_labelled"]}</td>{cells}</tr>'


def prediction(clip: dict[str, Any]) -> str:
    """What was said of a clip of an evaluation's JSON, and by which stream, as HTML."""
    label = clip["label"]

    def judged(answer: dict[str, Any]) -> str:
        mark = "" if label is None else " ✓" if answer["label"] == label else " ✗"
        return f"{escape(answer['label'])} {answer['probability']:.0%}{mark}"

    streams = "".join(f" · {escape(stream)}: {judged(answer)}" for stream, answer in clip["streams"].items())
    alone = len(clip["streams"]) == 1
    both = "" if alone else f" · <b>both: {judged(clip['top5'][0])}</b>"
    return f"{escape(label or 'no label')}{streams}{both}"


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10 times a power of ten: four ticks below it read well."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value * 0.999)
