"""What happens in a video: its likeliest classes, those of a sliding window over time, and features."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from manifests.files import complete_file
from manifests.sample import FRAME_RATE
from model import Stream
from train.decode import CROP_PIXELS
from train.evaluate import Streams, sum_of_streams, top_classes
from train.over_time import OverTime, classes_over_time
from train.videos import StoredStream
from train.watch import clip_logits, watch


class Features(NamedTuple):
    """An endpoint's activation over time.

    values: [steps, channels] float32, averaged over the picture; of the logits, [steps, classes].
    seconds: [steps] float64, the times in the video on which the steps are centred.
    """

    values: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What networks say of a video.

    Attributes:
        start_seconds: where in its file it begins.
        frames: how long it is, at 25 frames a second.
        top: its likeliest classes, best first, with label, index and probability.
        features: of an endpoint that was asked for.
        over_time: the classes of a sliding window, where they were asked for.
    """

    start_seconds: float
    frames: int
    top: list[dict[str, Any]]
    features: dict[Stream, Features]
    over_time: OverTime | None

    @property
    def end_seconds(self) -> float:
        """Where in its file it ends."""
        return self.start_seconds + self.frames / FRAME_RATE


def predict(
    stored: Mapping[Stream, StoredStream],
    streams: Streams,
    start_seconds: float = 0.0,
    top: int = 5,
    crop: int = CROP_PIXELS,
    endpoint: str | None = None,
    window_seconds: float | None = None,
) -> Prediction:
    """Classify a video.

    It comes in the stored form, so that a prediction equals the evaluation of the same clip in a dataset. Networks see
    it piece by piece: beside the stored bytes, what grows with its length are the values of their steps alone.

    Args:
        stored: the video, of `train.videos.prepare`.
        streams: the networks.
        start_seconds: where in its file the video begins.
        top: how many classes to name.
        crop: side of the centre crop, in pixels.
        endpoint: give the features of this one of `model.chunks.ENDPOINTS`, too; the networks must be I3Ds.
        window_seconds: give the classes of a sliding window of this length, too.

    Raises:
        ValueError: pictures smaller than the crop, no such endpoint.
    """
    with streams.autocast():
        watched = {
            inputs: watch(network, stored, crop, streams.device, endpoint)
            for inputs, network in streams.networks.items()
        }
        steps = {inputs: found for inputs, (found, _) in watched.items()}
        logits: dict[str, Any] = {
            inputs: clip_logits(network, steps[inputs].values[None], streams.device)[0]
            for inputs, network in streams.networks.items()
        }
        frames = stored["rgb"].pictures
        over_time = None
        if window_seconds is not None:
            over_time = classes_over_time(steps, streams, frames, window_seconds, start_seconds)
    features = {
        streams.networks[inputs].streams[0]: Features(found.values.numpy(), start_seconds + found.frames / FRAME_RATE)
        for inputs, (_, found) in watched.items()
        if found is not None
    }
    best = top_classes(sum_of_streams(logits), streams.classes, top)
    return Prediction(start_seconds, frames, best, features, over_time)


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
