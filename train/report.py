"""What training and evaluation found, as pieces of an HTML page that need nothing from outside."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

COLOURS = ("#2f6fdb", "#d9541e", "#7a7a7a", "#2a9d55", "#8e44ad")
DASHES = (("━━", "none"), ("╍╍", "10 5"), ("┅┅", "3 4"), ("┉┉", "12 4 3 4"))  # of five curves each
CURVES = len(COLOURS) * len(DASHES)  # that can be told apart
SMOOTHING_STEPS = 10
SMOOTHING_SHARE = 0.01  # of a long run
POINTS = 300  # of a curve at most, about two pixels each
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 56
TEXT = 'font-size="18" fill="currentColor"'

Lines = Sequence[Mapping[str, Any]]  # of a run's `metrics.jsonl`
Curve = tuple[Sequence[float], Sequence[float]]


def loss_curves(runs: Mapping[str, Lines]) -> str:
    """Training loss over steps, each point the mean of the last few, one line for each run's `metrics.jsonl`."""
    window = smoothing_window(runs)
    curves = {}
    for name, lines in runs.items():
        losses = [line["loss"] for line in lines if "loss" in line]
        steps = [line["step"] for line in lines if "loss" in line]
        curves[name] = thinned(steps, (_last_sums(losses, window) / _last_sums([1] * len(losses), window)).tolist())
    return line_chart(f"Training loss, mean of {window} steps", "step", curves)


def validation_curves(runs: Mapping[str, Lines]) -> str:
    """Top-1 share of held-out clips over steps; empty where no run was validated."""
    return line_chart("Held-out clips right", "step", _curves(runs, "val_top1"), highest=1.0)


def validation_loss_curves(runs: Mapping[str, Lines]) -> str:
    """Loss of held-out clips over steps; empty where no run was validated."""
    return line_chart("Loss of held-out clips", "step", _curves(runs, "val_loss"))


def rate_curves(runs: Mapping[str, Lines]) -> str:
    """Learning rate over steps, in powers of ten; empty without any."""
    curves = {}
    for name, lines in runs.items():
        points = [(line["step"], line["lr"]) for line in lines if line.get("lr", 0) > 0 and "loss" in line]
        rates = [rate for _, rate in points]
        # Both ends of each stretch of equal rates, so that it is drawn flat.
        begins = [i for i, rate in enumerate(rates) if i == 0 or rates[i - 1] != rate]
        ends = sorted({*begins, *(i - 1 for i in begins[1:]), *([len(points) - 1] if points else [])})
        curves[name] = thinned([points[i][0] for i in ends], [rates[i] for i in ends])
    return line_chart("Learning rate", "step", curves, decades=True)


def speed_curves(runs: Mapping[str, Lines], batch_sizes: Mapping[str, int]) -> str:
    """Clips a second over steps, and the share of the time that went by waiting for data; empty where unknown.

    Args:
        runs: name → lines, as above.
        batch_sizes: name → clips a step.
    """
    window = smoothing_window(runs)
    rates, shares = {}, {}
    for name, lines in runs.items():
        timed = [line for line in lines if "waiting_seconds" in line and line.get("seconds", 0) > 0]
        steps = [line["step"] for line in timed]
        seconds = _last_sums([line["seconds"] for line in timed], window)
        waiting = _last_sums([line["waiting_seconds"] for line in timed], window)
        clips = _last_sums([batch_sizes[name]] * len(timed), window)
        rates[name] = thinned(steps, (clips / seconds).tolist())
        shares[name] = thinned(steps, np.minimum(waiting / seconds, 1).tolist())
    of = f"mean of {window} steps"
    waiting_chart = line_chart(f"Share of the time waiting for data, {of}", "step", shares)
    return line_chart(f"Clips a second, {of}", "step", rates) + waiting_chart


def smoothing_window(runs: Mapping[str, Lines]) -> int:
    """Over how many steps training's noise is averaged: ten, or a hundredth of the longest run."""
    longest = max((sum("loss" in line for line in lines) for lines in runs.values()), default=0)
    return max(SMOOTHING_STEPS, math.ceil(longest * SMOOTHING_SHARE))


def line_chart(
    title: str, x_name: str, curves: Mapping[str, Curve], highest: float | None = None, decades: bool = False
) -> str:
    """Curves as an SVG in a figure; nothing where there is no point.

    Args:
        title: plain text.
        x_name: of the x-axis, which begins at 0.
        curves: name → x and y, none negative; at most `CURVES` of them. One without points keeps its look to itself,
            so that a run has the same in all charts.
        highest: where the y-axis ends; by default at the largest value. It begins at 0.
        decades: draw y in powers of ten instead; no value may be 0.
    """
    values = [value for _, y in curves.values() for value in y]
    if not values:
        return ""
    x_end = _round_up(max(max(x, default=0) for x, _ in curves.values()))
    ticks, height_of = _powers_of_ten(values) if decades else _from_zero(highest or _round_up(max(values)))

    def place(x: float, y: float) -> str:
        across = LEFT + x / x_end * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - height_of(y) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = []
    for tick in ticks:
        (left, level), right = place(0, tick).split(","), WIDTH - RIGHT
        parts.append(
            f'<path d="M{left} {level}H{right}" stroke="currentColor" opacity=".2"/>'
            f'<text x="{LEFT - 8}" y="{level}" dy="6" text-anchor="end" {TEXT}>{_tick(tick)}</text>'
        )
    for share in (0, 0.5, 1):
        across = place(share * x_end, ticks[0]).split(",")[0]
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        words = f"{share * x_end:g}" if share else f"0 {escape(x_name)}"
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 26}" text-anchor="{anchor}" {TEXT}>{words}</text>')
    legend = []
    for (line, dash, colour), (name, (x, y)) in zip(_looks(), curves.items(), strict=False):
        if not x:
            continue
        points = [place(*point) for point in zip(x, y, strict=True)]
        dots = "".join('<circle cx="{}" cy="{}" r="4"/>'.format(*p.split(",")) for p in points if len(points) < 20)
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><polyline fill="none" stroke-width="3" stroke-dasharray="{dash}" '
            f'points="{" ".join(points)}"/>{dots}</g>'
        )
        legend.append(f'<span class="key"><span style="color:{colour}">{line}</span> {escape(name)}</span>')
    return (
        f"<figure><figcaption>{escape(title)}: {' '.join(legend)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'style="width:100%;max-width:{WIDTH}px">{"".join(parts)}</svg></figure>'
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
    alone = len(clip["streams"]) == 1
    both = "" if alone else f" · <b>{judged({'both': clip['top5'][0]}, clip['label'])}</b>"
    return f"{escape(clip['label'] or 'no label')} · {judged(clip['streams'], clip['label'])}{both}"


def judged(answers: Mapping[str, Mapping[str, Any]], label: str | None) -> str:
    """Who says what of a clip, and whether that is right: name → label and probability, as HTML."""

    def words(answer: Mapping[str, Any]) -> str:
        mark = "" if label is None else " ✓" if answer["label"] == label else " ✗"
        return f"{escape(answer['label'])} {answer['probability']:.0%}{mark}"

    return " · ".join(f"{escape(name)}: {words(answer)}" for name, answer in answers.items())


def _curves(runs: Mapping[str, Lines], value: str) -> dict[str, Curve]:
    """A value over steps, of the lines that have it."""
    found = {name: [line for line in lines if value in line] for name, lines in runs.items()}
    return {name: thinned([a["step"] for a in lines], [a[value] for a in lines]) for name, lines in found.items()}


def thinned(x: Sequence[float], y: Sequence[float]) -> Curve:
    """At most `POINTS` of a curve's points, its ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int)) if len(x) > POINTS else range(len(x))
    return [x[i] for i in kept], [y[i] for i in kept]


def _last_sums(values: Sequence[float], window: int) -> np.ndarray:
    """For each of the values, the sum of the last `window` up to it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    return np.asarray(sums[last] - sums[np.maximum(last - window, 0)])


def _looks() -> Iterator[tuple[str, str, str]]:
    """Legend, dashes and colour of each curve in turn."""
    return ((line, dash, colour) for line, dash in DASHES for colour in COLOURS)


def _tick(value: float) -> str:
    """A number beside an axis, in the room that there is."""
    if 0 < value < 0.001:
        power = math.ceil(-math.log10(value))
        return f"{value * 10**power:.3g}e-{power}"
    return f"{value:g}"


def _from_zero(end: float) -> tuple[list[float], Callable[[float], float]]:
    """Ticks of an axis from 0, and the height (0…1) of a value."""
    return [share * end for share in (0, 0.25, 0.5, 0.75, 1)], lambda value: value / end


def _powers_of_ten(values: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Ticks of an axis of powers of ten around the values, few of them, and the height (0…1) of a value."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    ticks = [10.0**power for power in range(low, high + 1, math.ceil((high - low) / 6))]
    return ticks, lambda value: (math.log10(value) - low) / (high - low)


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10 times a power of ten: four ticks below it read well."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value * 0.999)
