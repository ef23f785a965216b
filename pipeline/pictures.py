"""Frames and flow of samples as figures of an HTML page."""

from collections import Counter
from html import escape
from pathlib import Path

import cv2

from flow import colour_legend
from manifests.index import Snapshot, read_index, read_members, read_metadata
from manifests.page import Html, figure
from manifests.sample import METADATA
from pipeline.preview import FLOW_SCALE_PIXELS, png, preview

PICTURES = 12
PICTURE_WIDTH_PIXELS = 960
LEGEND_PIXELS = 96
SHARDS_LOOKED_INTO = 16  # for clips to show


def pictures(folder: Path, snapshot: Snapshot) -> str:
    """Frames and flow of a few samples of a snapshot as a piece of HTML."""
    shards = snapshot.shards[:: -(-len(snapshot.shards) // SHARDS_LOOKED_INTO)]
    records = [(shard, record) for shard in shards for record in read_index(folder, shard)]
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
    legend = Html("")
    if snapshot.specification.flow is not None:
        words = f"Flow: hue is direction, saturation is speed; the rim is {FLOW_SCALE_PIXELS:g} pixels a frame."
        wheel = png(colour_legend(LEGEND_PIXELS))
        legend = figure(wheel, "image/png", LEGEND_PIXELS, LEGEND_PIXELS, "Colour wheel", words)
    return f"<h2>Frames and flow</h2>{legend}{''.join(figures)}"


def clip_figure(members: dict[str, bytes], description: str, caption: str) -> str:
    """Frames and flow of a stored sample as an HTML figure; `description` is plain text, `caption` HTML."""
    picture = preview(members)
    height = round(picture.shape[0] * PICTURE_WIDTH_PIXELS / picture.shape[1])
    if picture.shape[1] > PICTURE_WIDTH_PIXELS:  # a smaller one is left to the browser: the page stays small
        picture = cv2.resize(picture, (PICTURE_WIDTH_PIXELS, height), interpolation=cv2.INTER_AREA)
    return figure(png(picture), "image/png", PICTURE_WIDTH_PIXELS, height, description, caption)
