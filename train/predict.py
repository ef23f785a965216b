"""What happens in a video file: prepared as the pipeline does it, through the same bytes."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from manifests.clip import check_times
from manifests.sample import RGB, RgbCoding
from model import Stream
from pipeline.video import encode_rgb, flow_coding, flow_of
from train.decode import CROP_PIXELS, whole_clip
from train.evaluate import Streams, clip_logits, sum_of_streams, top_classes


def predict(
    video: Path,
    streams: Streams,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    top: int = 5,
    crop: int = CROP_PIXELS,
    short_side: int = RgbCoding.short_side,
) -> dict[str, Any]:
    """Classify [start_seconds, end_seconds) of a video, by default all of it.

    The clip goes through the stored form, encoded and decoded, so that a prediction equals the evaluation of the same
    clip in a dataset.

    Returns:
        `video`, `frames`, `top`: the most probable classes, best first, with label, index and probability.

    Raises:
        VideoError: the file is missing, no video, too short, …
        ValueError: times out of order, or pictures smaller than the crop.
    """
    check_times(start_seconds, end_seconds)
    with tempfile.TemporaryDirectory() as folder:
        rgb = encode_rgb(video, Path(folder) / RGB, RgbCoding(short_side=short_side), start_seconds, end_seconds)
    stored: dict[Stream, bytes] = {"rgb": rgb.content}
    if "flow" in streams.seen:
        stored["flow"] = flow_of(rgb.content, flow_coding(), threads=os.cpu_count() or 1).content
    pixels = {stream: torch.from_numpy(whole_clip(stored[stream], stream, crop)) for stream in streams.seen}
    joint = sum_of_streams(clip_logits(pixels, streams))
    return {"video": str(video), "frames": rgb.frames, "top": top_classes(joint, streams.classes, top)}
