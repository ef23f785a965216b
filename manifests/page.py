"""HTML that needs nothing from outside: a page, tables, cards, bars. All text is escaped here, but for `Html`."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #2a9d8f; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; list-style: none; }
.cards li { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; min-width: 6rem; }
.cards b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; } table { border-collapse: collapse; }
td, th { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { vertical-align: bottom; } tr.sum td { font-weight: 600; }
.line { white-space: nowrap; } td pre { min-width: 18rem; } summary { cursor: pointer; margin: .5rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .8rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; display: block; border-radius: .25rem; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; } .key { display: inline-block; }
svg.bars { width: 100%; max-width: 40rem; display: block; } svg.bars text { fill: currentColor; font-size: 13px; }
svg.bars rect { fill: var(--bar); }
"""
ROWS_SHOWN = 20  # of a long table, before it is unfolded
WIDTH, BAR_LEFT, BAR_RIGHT, ROW = 460, 110, 100, 22  # of bars, in pixels of the drawing


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


class Number(str):
    """A number as it is to be read, such as "12.3 %"."""

    __slots__ = ()


Cell = str | int | None


def page(title: str, sections: Sequence[str]) -> str:
    """An HTML page that needs nothing from outside; `title` is plain text, `sections` are HTML."""
    title = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body>\n'
        f"<h1>{title}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def cards(values: Mapping[str, Cell]) -> Html:
    """A few large numbers with their names."""
    items = "".join(f"<li><b>{_text(value)}</b>{escape(name)}</li>" for name, value in values.items())
    return Html(f'<ul class="cards">{items}</ul>')


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], total: Sequence[Cell] | None = None) -> Html:
    """A table; numbers stand right, None is an empty cell. `total` is its last row. Long ones are folded."""
    lines = [_row(row) for row in rows]
    if not lines:
        return Html("<p>None.</p>")
    last = _row(total, ' class="sum"') if total is not None else ""
    attributes = [cell.partition(">")[0] for cell in lines[0].split("<td")[1:]]  # names stand where their numbers do
    names = "".join(f"<th{said}>{escape(name)}</th>" for name, said in zip(head, attributes, strict=True))
    if len(lines) <= ROWS_SHOWN * 3 // 2:
        return Html(f'<div class="wide"><table><tr>{names}</tr>{"".join(lines)}{last}</table></div>')
    shown, folded = lines[:ROWS_SHOWN], lines[ROWS_SHOWN:]
    return Html(
        f'<div class="wide"><table><tr>{names}</tr>{"".join(shown)}{last}</table></div>'
        f"<details><summary>{len(folded):,} more</summary>"
        f'<div class="wide"><table><tr>{names}</tr>{"".join(folded)}</table></div></details>'
    )


def bars(title: str, counts: Mapping[str, int]) -> Html:
    """Counts as horizontal bars, drawn as SVG."""
    top, total = max(counts.values(), default=0) or 1, sum(counts.values()) or 1
    parts = []
    for number, (name, count) in enumerate(counts.items()):
        y, width = number * ROW, (WIDTH - BAR_LEFT - BAR_RIGHT) * count / top
        words = f"{count:,} · {percent(count / total)}" if count else "0"
        parts.append(
            f'<text x="{BAR_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{BAR_LEFT}" y="{y + 3}" width="{max(width, 1 if count else 0):.1f}" height="{ROW - 6}" rx="2"/>'
            f'<text x="{BAR_LEFT + width + 6:.1f}" y="{y + 15}">{words}</text>'
        )
    return Html(
        f'<svg class="bars" viewBox="0 0 {WIDTH} {ROW * len(counts)}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def figure(picture: bytes, media_type: str, width: int, height: int, description: str, caption: str) -> Html:
    """A picture within the page.

    Args:
        picture: content of the file.
        media_type: "image/png" or "image/jpeg".
        width: in pixels, as it is shown where there is room.
        height: in pixels.
        description: plain text.
        caption: HTML.
    """
    url = f"data:{media_type};base64,{base64.b64encode(picture).decode()}"
    return Html(
        f'<figure><img alt="{escape(description)}" src="{url}" width="{width}" height="{height}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def unbroken(text: str) -> Html:
    """A word or a few that stay on one line."""
    return Html(f'<span class="line">{escape(text)}</span>')


def percent(share: float) -> Number:
    """A share 0…1 in percent; what is not quite nothing or everything does not look so."""
    for bound, digits in ((0.001, 2), (0.1, 1), (0.995, 0), (0.9995, 1)):
        if share < bound:
            return Number(f"{100 * share:.{digits}f} %" if share else "0 %")
    return Number("100 %" if share == 1 else f"{100 * min(share, 0.9999):.2f} %")


def _row(cells: Sequence[Cell], attributes: str = "") -> str:
    return f"<tr{attributes}>{''.join(map(_cell, cells))}</tr>"


def _cell(value: Cell) -> str:
    if isinstance(value, int | Number):
        return f'<td class="n">{_text(value)}</td>'
    return f"<td>{_text(value)}</td>"


def _text(value: Cell) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return str(value) if isinstance(value, Html) else escape(value or "")
