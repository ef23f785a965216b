"""Networks on a stored video of any length, a piece at a time: what they see of it, step by step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model import I3D, LOGITS, ConvNetLSTM, Network, Stream, chunked_endpoints, step_frames
from train.decode import clip_pictures, network_input, network_inputs
from train.evaluate import CHUNK_FRAMES
from train.plan import Pictures
from train.samplers import whole_clip_windows
from train.videos import StoredStream

PICTURES_AT_A_TIME = 64  # that ConvNet+LSTM sees
WINDOWS_AT_A_TIME = 4  # that the others see


class Steps(NamedTuple):
    """What a network sees of a video at places in time.

    frames: [N] float64, where in the video they are centred: numbers of frames from 0 on, with halves, none before the
        one before it.
    values: [N, C] float32, on the CPU.
    """

    frames: np.ndarray
    values: Tensor


@torch.inference_mode()
def watch(
    network: Network,
    stored: Mapping[Stream, StoredStream],
    crop: int,
    device: torch.device,
    endpoint: str | None = None,
) -> tuple[Steps, Steps | None]:
    """Run a network over a stored video as it is tested: I3D over all of it, the others window by window.

    Memory is that of a piece, beside the stored bytes and what is returned.

    Args:
        network: in evaluation mode, on the device.
        stored: the video of each of its streams.
        crop: side of the centre crop, in pixels.
        device: where to run.
        endpoint: of I3D, whose features to keep, if any: averaged over the picture.

    Returns:
        What `clip_logits` takes: the logits of I3D's steps and of the others' windows, and of ConvNet+LSTM the features
        of its pictures. And the features of the endpoint.

    Raises:
        VideoError, ValueError: a damaged video, pictures smaller than the crop, no such endpoint.
    """
    clip_frames = min(stored[stream].pictures for stream in network.streams)
    windows = whole_clip_windows(network.architecture, network.streams, clip_frames)
    if isinstance(network, I3D):
        return _watch_i3d(network, stored, _pieces(windows[0], CHUNK_FRAMES), crop, device, endpoint)
    if isinstance(network, ConvNetLSTM):
        ((stream, numbers),) = windows[0].items()
        frames = np.asarray(numbers) + (0.5 if stream == "flow" else 0.0)
        pieces = _clips(stored, _pieces(windows[0], PICTURES_AT_A_TIME), crop, 1)
        found = [network.picture_features(*network_inputs(clip, network, device))[0] for clip in pieces]
    else:
        frames = np.array([_middle(window) for window in windows])
        found = [
            network(*network_inputs(clips, network, device))
            for clips in _clips(stored, windows, crop, WINDOWS_AT_A_TIME)
        ]
    return Steps(frames, torch.cat([values.float().cpu() for values in found])), None


@torch.inference_mode()
def clip_logits(network: Network, values: Tensor, device: torch.device) -> Tensor:
    """The logits of clips, from what `watch` found at their steps.

    Their mean; ConvNet+LSTM begins with each clip anew and gives the logits after its last picture.

    Args:
        network: the one that watched.
        values: [B, N, C], of the N steps of B clips.
        device: where the network is.

    Returns:
        [B, classes] float32, on the CPU.
    """
    if isinstance(network, ConvNetLSTM):
        return network.classify(values.to(device)).float().cpu()
    return values.mean(dim=1)


def _watch_i3d(
    network: I3D,
    stored: Mapping[Stream, StoredStream],
    pieces: Sequence[Pictures],
    crop: int,
    device: torch.device,
    endpoint: str | None,
) -> tuple[Steps, Steps | None]:
    (stream,) = network.streams
    frames = sum(len(piece[stream]) for piece in pieces)
    inputs = (network_input(clip[stream].to(device), stream) for clip in _clips(stored, pieces, crop, 1))
    kept: dict[str, list[Tensor]] = {name: [] for name in (LOGITS, endpoint) if name is not None}
    for name, steps in chunked_endpoints(network, inputs, frames, kept):
        kept[name].append(steps[0].float().flatten(2).mean(2).cpu() if steps.ndim == 5 else steps[0].float().cpu())
    offset = 0.5 if stream == "flow" else 0.0  # flow belongs between the two frames that it is of
    found = {
        name: Steps(step_frames(network, frames, name).numpy() + offset, torch.cat(parts, dim=1).T.contiguous())
        for name, parts in kept.items()
    }
    return found[LOGITS], found[endpoint] if endpoint is not None else None


def _pieces(window: Pictures, count: int) -> list[Pictures]:
    """A window of one stream cut into pieces of so many pictures."""
    ((stream, numbers),) = window.items()
    return [{stream: numbers[start : start + count]} for start in range(0, len(numbers), count)]


def _middle(window: Mapping[Stream, Sequence[int]]) -> float:
    """Of the frames that a window reaches over; flow i reaches from frame i to the next."""
    first = min(min(numbers) for numbers in window.values())
    last = max(max(numbers) + (stream == "flow") for stream, numbers in window.items())
    return (first + last) / 2


def _clips(
    stored: Mapping[Stream, StoredStream], windows: Sequence[Pictures], crop: int, at_a_time: int
) -> Iterator[dict[Stream, Tensor]]:
    """The pictures of windows, some windows at a time: [B, pictures, rows, crop] uint8 of each stream."""
    stacks = {s: _stacks(stored[s], s, crop, [window[s] for window in windows]) for s in windows[0]}
    for _ in range(0, len(windows), at_a_time):
        yield {s: torch.from_numpy(np.stack(list(islice(some, at_a_time)))) for s, some in stacks.items()}


def _stacks(stored: StoredStream, stream: Stream, crop: int, windows: Iterable[Sequence[int]]) -> Iterator[np.ndarray]:
    """The pictures of windows, none of which begins before the one before it; each is decoded once."""
    pictures = enumerate(clip_pictures(stored.content, stream, crop))
    read, kept = 0, dict[int, np.ndarray]()
    for numbers in windows:
        first, end = min(numbers), max(numbers) + 1
        kept = {number: picture for number, picture in kept.items() if number >= first}
        kept |= {number: picture for number, picture in islice(pictures, max(end - read, 0)) if number >= first}
        read = max(read, end)
        yield np.stack([kept[number] for number in numbers])
