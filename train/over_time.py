"""Classes over time: what networks say of a window that slides over a video that they have seen once."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifests.sample import FRAME_RATE
from model import ConvNetLSTM, Network
from train.evaluate import Streams
from train.stream import Inputs
from train.watch import Steps, clip_logits

STEP_FRAMES = 8  # from one window to the next: that of I3D's logits
WINDOWS_AT_A_TIME = 64


class OverTime(NamedTuple):
    """Classes over time.

    seconds: [K] float64, the times in the video on which the windows are centred, `STEP_FRAMES` apart.
    probabilities: [K, classes] float32.
    window_seconds: how long a window is.
    """

    seconds: np.ndarray
    probabilities: np.ndarray
    window_seconds: float

    def leading(self, count: int) -> list[int]:
        """The classes that are likeliest at some time, the one with the highest peak first."""
        peaks = self.probabilities.max(axis=0)
        return [int(index) for index in np.argsort(-peaks, kind="stable")[:count]]


class Stretch(NamedTuple):
    """A time in which one class is the likeliest: from one centre of a window to another, or to the video's end."""

    start_seconds: float
    end_seconds: float
    class_index: int
    probability: float  # its mean


def classes_over_time(
    steps: Mapping[Inputs, Steps], streams: Streams, frames: int, window_seconds: float, start_seconds: float = 0.0
) -> OverTime:
    """What networks together say of a window around every eighth frame of a video.

    The networks have seen the video once, as a whole. A window's logits are the mean of those of the steps whose
    middles lie in it, [t - window/2, t + window/2); at the video's ends it has fewer. Where a network has no step in
    it, the nearest counts. So they are not quite what a network says of the same stretch cut out: I3D's steps see what
    lies around the window, too, where there would be padding. ConvNet+LSTM has no logits of a step that do not depend
    on all before it: it begins anew with each window's pictures. Networks' logits are added before the softmax.

    Args:
        steps: of each network, by what it sees.
        streams: the networks.
        frames: of the video.
        window_seconds: how long a window is.
        start_seconds: where in its file the video begins.
    """
    centres = np.arange(0, frames, STEP_FRAMES, dtype=np.float64)
    logits = torch.stack(
        [
            _window_logits(network, steps[inputs], centres, window_seconds * FRAME_RATE, streams.device)
            for inputs, network in streams.networks.items()
        ]
    ).sum(0)
    return OverTime(start_seconds + centres / FRAME_RATE, logits.softmax(1).numpy(), window_seconds)


def stretches(found: OverTime, end_seconds: float) -> list[Stretch]:
    """The stretches of a video in each of which one class is the likeliest, in their order.

    Args:
        found: the classes over time.
        end_seconds: where the video ends.
    """
    best = found.probabilities.argmax(axis=1)
    starts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
    ends = [*found.seconds[starts[1:-1]].tolist(), end_seconds]
    return [
        Stretch(float(found.seconds[i]), end, int(best[i]), float(found.probabilities[i:j, best[i]].mean()))
        for i, j, end in zip(starts[:-1], starts[1:], ends, strict=True)
    ]


def _window_logits(
    network: Network, steps: Steps, centres: np.ndarray, window_frames: float, device: torch.device
) -> Tensor:
    """[K, classes] float32 on the CPU."""
    firsts = np.searchsorted(steps.frames, centres - window_frames / 2)
    ends = np.searchsorted(steps.frames, centres + window_frames / 2)
    empty = firsts == ends
    nearest = _nearest(steps.frames, centres)
    firsts, ends = np.where(empty, nearest, firsts), np.where(empty, nearest + 1, ends)
    if not isinstance(network, ConvNetLSTM):
        sums = torch.nn.functional.pad(steps.values.double().cumsum(0), (0, 0, 1, 0))
        means = (sums[ends] - sums[firsts]) / torch.from_numpy(ends - firsts)[:, None]
        return means.float()
    windows: defaultdict[int, list[int]] = defaultdict(list)  # by how many pictures they have
    for number, count in enumerate((ends - firsts).tolist()):
        windows[count].append(number)
    logits = torch.empty(len(centres), network.num_classes)
    for count, numbers in windows.items():
        for start in range(0, len(numbers), WINDOWS_AT_A_TIME):
            some = numbers[start : start + WINDOWS_AT_A_TIME]
            values = torch.stack([steps.values[firsts[number] : firsts[number] + count] for number in some])
            logits[some] = clip_logits(network, values, device)
    return logits


def _nearest(places: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """For each centre the number of the nearest place; of two the earlier."""
    after = np.searchsorted(places, centres).clip(1, max(len(places) - 1, 1))
    before = after - 1
    after = after.clip(max=len(places) - 1)
    return np.where(centres - places[before] <= places[after] - centres, before, after)


def rounded(values: np.ndarray | Sequence[float], digits: int) -> list[float]:
    """Numbers as a machine is told them, without digits that mean nothing."""
    return [round(float(value), digits) for value in values]
