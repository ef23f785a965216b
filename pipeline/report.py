"""The report page of a dataset: one HTML file without any outside resource."""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flow import colour_legend
from manifests.files import write_file
from manifests.index import Snapshot, read_index, read_members, read_metadata, read_snapshot
from manifests.sample import METADATA
from pipeline.ledger import REASONS, read_ledger, totals
from pipeline.preview import FLOW_SCALE_PIXELS, png, preview

PICTURES = 12
PICTURE_WIDTH_PIXELS = 960
FAILURES_SHOWN = 200

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; list-style: none; }
.cards li { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; min-width: 6rem; }
.cards b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .8rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; display: block; border-radius: .25rem; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
"""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a dataset's folder and give its path.

    Raises:
        FormatError: a damaged dataset.
    """
    path = folder / "report.html"
    write_file(path, report_page(folder).encode())
    return path


def report_page(folder: Path) -> str:
    """The report of a dataset as an HTML page."""
    return page("/".join(folder.resolve().parts[-2:]), dataset_sections(folder))


def dataset_sections(folder: Path) -> list[str]:
    """Totals, failures by reason and clip, classes, frames and flow of a few samples: a piece of HTML each."""
    entries = read_ledger(folder)
    snapshot = read_snapshot(folder)
    counts = totals(entries.values())
    sections = [_cards(counts, snapshot), _failures(entries, counts)]
    if snapshot is not None:
        sections += [_classes(entries), _pictures(folder, snapshot), _specification(snapshot)]
    return sections


def page(title: str, sections: Sequence[str]) -> str:
    """An HTML page that needs nothing from outside; `title` is plain text, `sections` are HTML."""
    title = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body>\n'
        f"<h1>{title}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _cards(counts: dict[str, Any], snapshot: Snapshot | None) -> str:
    cards = {"listed": counts["listed"], "ok": counts["ok"], "failed": sum(counts["failed"].values())}
    if snapshot is not None:
        size = sum(shard.bytes for shard in snapshot.shards)
        cards |= {"shards": len(snapshot.shards), "MB": f"{size / 1e6:.2g}", "snapshot": snapshot.name}
    items = "".join(f"<li><b>{escape(str(value))}</b>{name}</li>" for name, value in cards.items())
    return f'<ul class="cards">{items}</ul>'


def _failures(entries: dict[str, Any], counts: dict[str, Any]) -> str:
    failed = [entry for entry in entries.values() if entry["reason"] is not None]
    if not failed:
        return "<h2>Failures</h2><p>None.</p>"
    by_reason = "".join(
        f'<tr><td>{escape(reason)}</td><td class="n">{number}</td><td>{escape(REASONS[reason].meaning)}</td></tr>'
        for reason, number in counts["failed"].items()
    )
    rows = "".join(
        f"<tr><td>{escape(entry['key'])}</td><td>{escape(entry['reason'])}</td>"
        f"<td><pre>{escape(entry['message'])}</pre></td></tr>"
        for entry in failed[:FAILURES_SHOWN]
    )
    more = f"<p>{len(failed) - FAILURES_SHOWN} more in the ledger.</p>" if len(failed) > FAILURES_SHOWN else ""
    return (
        f'<h2>Failures</h2><div class="wide"><table><tr><th>Reason</th><th>Clips</th><th>Meaning</th></tr>{by_reason}'
        '</table></div><div class="wide"><table><tr><th>Clip or row</th><th>Reason</th><th>Message</th></tr>'
        f"{rows}</table></div>{more}"
    )


def _classes(entries: dict[str, Any]) -> str:
    splits = sorted({entry["split"] or "" for entry in entries.values() if entry["reason"] is None})
    counts = Counter((entry["label"], entry["split"] or "") for entry in entries.values() if entry["reason"] is None)
    labels = sorted({label for label, _ in counts}, key=lambda label: label or "")
    head = "".join(f"<th>{escape(split or 'no split')}</th>" for split in splits)
    rows = "".join(
        f"<tr><td>{escape(label) if label else '<i>no label</i>'}</td>"
        + "".join(f'<td class="n">{counts[label, split]}</td>' for split in splits)
        + "</tr>"
        for label in labels
    )
    return f'<h2>Clips by class</h2><div class="wide"><table><tr><th>Class</th>{head}</tr>{rows}</table></div>'


def _pictures(folder: Path, snapshot: Snapshot) -> str:
    records = [(shard, record) for shard in snapshot.shards for record in read_index(folder, shard)]
    # One of each class before a second of any.
    seen: Counter[int] = Counter()
    turns = []
    for shard, record in records:
        turns.append((seen[int(record["class_index"])], shard, record))
        seen[int(record["class_index"])] += 1
    chosen = [(shard, record) for _, shard, record in sorted(turns, key=lambda turn: turn[0])[:PICTURES]]
    figures = []
    for shard, record in chosen:
        with (folder / shard.path).open("rb") as file:
            members = read_members(file, record)
        metadata = read_metadata(members[METADATA], shard.path)
        caption = f"{metadata['label'] or 'no label'} · {metadata['key']} · {metadata['duration_seconds']:g} s"
        figures.append(clip_figure(members, caption, escape(caption)))
    legend = ""
    if snapshot.specification.flow is not None:
        legend = (
            f'<figure><img alt="Colour wheel" src="{_data_url(colour_legend(96))}" width="96" height="96"><figcaption>'
            f"Flow: hue is direction, saturation is speed; the rim is {FLOW_SCALE_PIXELS:g} pixels a frame."
            "</figcaption></figure>"
        )
    return f"<h2>Frames and flow</h2>{legend}{''.join(figures)}"


def clip_figure(members: dict[str, bytes], description: str, caption: str) -> str:
    """Frames and flow of a stored sample as an HTML figure; `description` is plain text, `caption` HTML."""
    picture = preview(members)
    height = round(picture.shape[0] * PICTURE_WIDTH_PIXELS / picture.shape[1])
    if picture.shape[1] > PICTURE_WIDTH_PIXELS:  # a smaller one is left to the browser: the page stays small
        picture = cv2.resize(picture, (PICTURE_WIDTH_PIXELS, height), interpolation=cv2.INTER_AREA)
    return (
        f'<figure><img alt="{escape(description)}" src="{_data_url(picture)}" width="{PICTURE_WIDTH_PIXELS}" '
        f'height="{height}"><figcaption>{caption}</figcaption></figure>'
    )


def _specification(snapshot: Snapshot) -> str:
    text = escape(snapshot.specification.name)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in _flat(snapshot.specification.to_json())
    )
    return f'<h2>Specification {text}</h2><div class="wide"><table>{rows}</table></div>'


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "none" if value is None else str(value)


def _data_url(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
