"""A stored sample as a picture: frames above, colour-coded flow below."""

from pathlib import Path

import cv2
import numpy as np

from flow import decode_flow_codes, dequantise, film_strip
from manifests.index import read_index, read_members, read_metadata, read_snapshot
from manifests.sample import FLOW, METADATA, RGB, FormatError
from pipeline.video import decode_rgb

COLUMNS = 6
FLOW_SCALE_PIXELS = 5.0


def read_sample(folder: Path, key: str) -> dict[str, bytes]:
    """The members of one published sample.

    Raises:
        FormatError: nothing published, or no such sample.
    """
    snapshot = read_snapshot(folder)
    for shard in snapshot.shards if snapshot else ():
        for record in read_index(folder, shard):
            if record["key"].decode() == key:
                with (folder / shard.path).open("rb") as file:
                    return read_members(file, record)
    raise FormatError(f"{folder}: no published sample has the key {key!r}; all keys stand in ledger/outcomes.jsonl")


def preview(members: dict[str, bytes], columns: int = COLUMNS) -> np.ndarray:
    """Frames spread over the clip above, the flow from each of them below: [H or 2H, columns · W, 3] uint8 RGB."""
    frames = decode_rgb(members[RGB])
    places = np.unique(np.linspace(0, len(frames) - 2, columns).round().astype(int))
    fields = None
    if FLOW in members:
        bound = read_metadata(members[METADATA], METADATA)["flow"]["bound_pixels"]
        fields = dequantise(decode_flow_codes(members[FLOW])[places], bound)
    return film_strip(frames[places], fields, FLOW_SCALE_PIXELS)


def png(picture: np.ndarray) -> bytes:
    """An RGB picture as the bytes of a PNG file."""
    ok, encoded = cv2.imencode(".png", picture[..., ::-1])
    if not ok:
        raise RuntimeError(f"cannot encode a picture of {picture.shape} as PNG")
    return encoded.tobytes()
