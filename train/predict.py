"""What happens in a video file: prepared as the pipeline does it, through the same bytes."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifests.clip import check_times
from manifests.files import complete_file
from manifests.sample import FRAME_RATE, MINIMUM_FRAMES, RGB, RgbCoding
from model import I3D, LOGITS, Stream, chunked_endpoints, step_frames
from pipeline.video import encode_rgb, flow_coding, flow_of
from train.decode import CROP_PIXELS, clip_pictures, network_input, whole_clip
from train.evaluate import CHUNK_FRAMES, Streams, network_logits, sum_of_streams, top_classes

MAXIMUM_SECONDS = 6 * 3600.0


class StoredStream(NamedTuple):
    """A video in its stored form, and how many pictures it has."""

    content: bytes
    pictures: int


class Features(NamedTuple):
    """An endpoint's activation over time.

    values: [steps, channels] float32, averaged over the picture; of the logits, [steps, classes].
    seconds: [steps] float64, the times in the video on which the steps are centred.
    """

    values: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What networks say of a video: how long it is at 25 frames a second, its likeliest classes, and features."""

    frames: int
    top: list[dict[str, Any]]  # best first, with label, index and probability
    features: dict[Stream, Features]


def predict(
    video: Path,
    streams: Streams,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    top: int = 5,
    crop: int = CROP_PIXELS,
    short_side: int = RgbCoding.short_side,
    endpoint: str | None = None,
) -> Prediction:
    """Classify [start_seconds, end_seconds) of a video, by default all of it.

    The clip goes through the stored form, encoded and decoded, so that a prediction equals the evaluation of the same
    clip in a dataset. I3D sees it piece by piece: beside the stored bytes, memory does not grow with its length.

    Args:
        video: the file.
        streams: the networks.
        start_seconds: where to begin.
        end_seconds: where to end; None is the end of the video.
        top: how many classes to name.
        crop: side of the centre crop, in pixels.
        short_side: of the pictures that it is cut from, in pixels.
        endpoint: give the features of this one of `model.chunks.ENDPOINTS`, too; the networks must be I3Ds.

    Raises:
        VideoError: the file is missing, no video, too short, …
        ValueError: times out of order, pictures smaller than the crop, no such endpoint, or features that are asked of
            another network than I3D.
    """
    check_times(start_seconds, end_seconds)
    if crop > short_side:
        raise ValueError(f"pictures of short side {short_side} are smaller than the crop of {crop}x{crop} (--crop)")
    for network in streams.networks.values():
        if endpoint is not None and not isinstance(network, I3D):
            raise ValueError(f"--features are of i3d, this network is {network.architecture}")
    stored = _prepare(video, "flow" in streams.seen, start_seconds, end_seconds, short_side)
    logits: dict[str, Tensor] = {}
    features: dict[Stream, Features] = {}
    with streams.autocast():
        for inputs, network in streams.networks.items():
            if not isinstance(network, I3D):
                pixels = {s: torch.from_numpy(whole_clip(stored[s].content, s, crop)) for s in network.streams}
                logits[inputs] = network_logits(pixels, network, streams.device)
                continue
            (stream,) = network.streams
            logits[inputs], found = watch(network, stored[stream], crop, streams.device, endpoint)
            if endpoint is not None:
                frames = step_frames(network, max(stored[stream].pictures, MINIMUM_FRAMES), endpoint).numpy()
                offset = 0.5 if stream == "flow" else 0.0  # flow belongs between the two frames that it is of
                features[stream] = Features(found.numpy(), start_seconds + (frames + offset) / FRAME_RATE)
    return Prediction(stored["rgb"].pictures, top_classes(sum_of_streams(logits), streams.classes, top), features)


@torch.inference_mode()
def watch(
    network: I3D, stored: StoredStream, crop: int, device: torch.device, endpoint: str | None = None
) -> tuple[Tensor, Tensor]:
    """Run I3D over a stored video, a piece at a time.

    Args:
        network: in evaluation mode, on the device.
        stored: the video of its stream; one of fewer than 9 pictures starts over.
        crop: side of the centre crop, in pixels.
        device: where to run.
        endpoint: whose features to keep, if any.

    Returns:
        Logits [classes], averaged over time, and features [steps, channels], averaged over the picture (empty without
        an endpoint): both float32 on the CPU.

    Raises:
        VideoError, ValueError: a damaged video, pictures smaller than the crop, no such endpoint.
    """
    (stream,) = network.streams
    pictures = clip_pictures(stored.content, stream, crop)
    frames = max(stored.pictures, MINIMUM_FRAMES)
    if stored.pictures < frames:
        few = list(pictures)
        pictures = (few[number % len(few)] for number in range(frames))
    kept: dict[str, list[Tensor]] = {name: [] for name in (LOGITS, endpoint) if name is not None}
    for name, steps in chunked_endpoints(network, _pieces(pictures, stream, device), frames, kept):
        kept[name].append(steps[0].float().flatten(2).mean(2).cpu() if steps.ndim == 5 else steps[0].float().cpu())
    logits = torch.cat(kept[LOGITS], dim=1).mean(dim=1)
    return logits, torch.cat(kept[endpoint], dim=1).T.contiguous() if endpoint is not None else torch.empty(0, 0)


def _pieces(pictures: Iterator[np.ndarray], stream: Stream, device: torch.device) -> Iterator[Tensor]:
    while some := list(islice(pictures, CHUNK_FRAMES)):
        yield network_input(torch.from_numpy(np.stack(some))[None].to(device), stream)


def _prepare(
    video: Path, with_flow: bool, start_seconds: float, end_seconds: float | None, short_side: int
) -> dict[Stream, StoredStream]:
    """A video in its stored form, by stream."""
    coding = RgbCoding(short_side=short_side)
    with tempfile.TemporaryDirectory() as folder:
        rgb = encode_rgb(video, Path(folder) / RGB, coding, start_seconds, end_seconds, MAXIMUM_SECONDS)
    stored: dict[Stream, StoredStream] = {"rgb": StoredStream(rgb.content, rgb.frames)}
    if with_flow:
        flow = flow_of(rgb.content, flow_coding(), threads=os.cpu_count() or 1)
        stored["flow"] = StoredStream(flow.content, flow.frames)
    return stored


def write_features(path: Path, features: Mapping[Stream, Features], endpoint: str) -> None:
    """Write features to an .npz file: `STREAM_features`, `STREAM_seconds` of each stream, and `endpoint`.

    The file appears under its name when it is complete. It holds plain arrays: `numpy.load` reads it as it is.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    arrays = {"endpoint": np.array(endpoint)}
    for stream, found in features.items():
        arrays |= {f"{stream}_features": found.values, f"{stream}_seconds": found.seconds}
    with complete_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
