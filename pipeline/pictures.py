"""Frames and flow of samples as figures of an HTML page."""

import base64
from collections import Counter
from html import escape
from pathlib import Path

import cv2
import numpy as np

from flow import colour_legend
from manifests.index import Snapshot, read_index, read_members, read_metadata
from manifests.sample import METADATA
from pipeline.preview import FLOW_SCALE_PIXELS, png, preview

PICTURES = 12
PICTURE_WIDTH_PIXELS = 960
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


def _data_url(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
