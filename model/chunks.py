"""I3D on a video of any length in the memory of a short one: pieces in, what the whole video would give out.

A layer that sees several steps in time keeps the last few of its input until the next piece comes. So nothing else is
computed twice, and each window is that of the whole video: SAME padding, which depends on the video's length, is as
there, and none is put in where two pieces meet.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor, nn

from model.i3d import AVERAGE_POOL, I3D, MINIMUM_FRAMES
from model.layers import MaxPool, same_padding

LOGITS = "Logits"  # behind the last endpoint: the logits of each time step
ENDPOINTS = (*I3D.ENDPOINTS, LOGITS)


def chunked_endpoints(
    network: I3D, pieces: Iterable[Tensor], frames: int, names: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The activations of endpoints on a video that comes in pieces.

    Memory is that of a piece, of what the layers keep (under 8 steps each) and of what the caller holds on to.

    Args:
        network: in evaluation mode: batch normalisation in training would see each piece by itself.
        pieces: [B, C, T, H, W] floats in [-1, 1], any T from 1 up, one after the other.
        frames: T of all together, at least 9.
        names: which of `ENDPOINTS`; nothing after the last of them is computed.

    Yields:
        A name and the next steps of its activation, [B, C', t, H', W'], or of `LOGITS` [B, num_classes, t]. Together
        the steps of a name equal `network.endpoint(video, name)`, or `network.logits_per_step(video)`, up to rounding.

    Raises:
        ValueError: no such endpoint, a network in training mode, fewer or more frames than were announced, fewer than
            9, pieces of different sizes, or one that the network does not take.
    """
    unknown = [name for name in names if name not in ENDPOINTS]
    if unknown:
        raise ValueError(f"no endpoint {unknown[0]!r}; there are {', '.join(ENDPOINTS)}")
    if network.training:
        raise ValueError("the network is in training mode, in which batch normalisation sees what lies together")
    if frames < MINIMUM_FRAMES:
        raise ValueError(f"a video of {frames} frames, I3D needs at least {MINIMUM_FRAMES}")
    layers = _layers(network, frames, names)
    seen = 0
    for piece in pieces:
        network.check_input(piece, minimum_frames=1)
        seen += piece.shape[2]
        if seen > frames:
            raise ValueError(f"the video has at least {seen} frames, {frames} were announced")
        x = piece
        for name, layer in layers.items():
            steps = layer.next_steps(x)
            if steps is None:
                break
            x = steps
            if name in names:
                yield name, x
    if seen < frames:
        raise ValueError(f"the video has {seen} frames, {frames} were announced")


def chunked_logits(network: I3D, pieces: Iterable[Tensor], frames: int) -> Tensor:
    """Class logits of a video that comes in pieces, averaged over time: `network(video)`, up to rounding.

    Args and errors as of `chunked_endpoints`.

    Returns:
        [B, num_classes].
    """
    steps = [logits for _, logits in chunked_endpoints(network, pieces, frames, (LOGITS,))]
    return torch.cat(steps, dim=2).mean(dim=2)


def step_frames(network: I3D, frames: int, name: str) -> Tensor:
    """Where in a video the steps of an endpoint are: the middle of the frames that each sees.

    Args:
        network: whose endpoint.
        frames: of the video.
        name: one of `ENDPOINTS`.

    Returns:
        [T'] double: numbers of frames from 0 on, with halves; none after the last frame.
    """
    layers = list(_layers(network, frames, (name,)).values())
    places = torch.arange(layers[-1].outputs, dtype=torch.float64)
    for layer in reversed(layers):
        places = places * layer.stride - layer.before + (layer.kernel - 1) / 2
    return places.clamp(max=frames - 1)


class _Layer:
    """A layer whose input comes in pieces.

    Args:
        compute: the layer, on [B, C, T, H, W] of any T.
        kernel: how many steps in time a window has.
        stride: from one window to the next.
        inputs: steps of the whole input.
        padded: by SAME; or VALID.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], kernel: int, stride: int, inputs: int, *, padded: bool
    ) -> None:
        self.compute, self.kernel, self.stride, self.inputs = compute, kernel, stride, inputs
        self.before = same_padding(inputs, kernel, stride)[0] if padded else 0
        self.outputs = -(-inputs // stride) if padded else (inputs - kernel) // stride + 1
        self.kept: Tensor | None = None  # the input's steps from `start` on
        self.start = 0
        self.done = 0  # steps of the output

    def next_steps(self, piece: Tensor) -> Tensor | None:
        """The steps of the output that can be computed now, if there are any.

        The layer pads what it is given as if it were a whole video. What that changes at a seam is left out; and for
        the windows to lie as in the whole, a part begins at a multiple of the stride, and its length leaves the same
        remainder as the whole's.
        """
        x = piece if self.kept is None else torch.cat([self.kept, piece], dim=2)
        end = self.start + x.shape[2]
        if end == self.inputs:
            ready = self.outputs
        else:
            end -= (end - self.inputs) % self.stride
            ready = max((end + self.before - self.kernel) // self.stride + 1, self.done)
        y = None
        if ready > self.done:
            first = self.start // self.stride
            y = self.compute(x[:, :, : end - self.start])[:, :, self.done - first : ready - first]
            self.done = ready
        start = max(ready * self.stride - self.before, 0) // self.stride * self.stride
        self.kept = x[:, :, start - self.start :].clone()  # so that the rest of it can go
        self.start = start
        return y


def _layers(network: I3D, frames: int, names: Collection[str]) -> dict[str, _Layer]:
    """The layers up to the last of some endpoints, by name, for a video of so many frames."""
    layers = {}
    steps = frames
    for name in ENDPOINTS[: max(ENDPOINTS.index(name) for name in names) + 1]:
        if name == LOGITS:
            layer = _Layer(network.classify, AVERAGE_POOL[0], 1, steps, padded=False)
        else:
            module = network.get_submodule(name)
            layer = _Layer(module, *_extent_in_time(module), steps, padded=True)
        layers[name] = layer
        steps = layer.outputs
    return layers


def _extent_in_time(layer: nn.Module) -> tuple[int, int]:
    """Kernel and stride in time of a layer; of an Inception module those of its branches' larger part."""
    return max(
        (part.kernel_size[0], part.stride[0]) for part in layer.modules() if isinstance(part, (nn.Conv3d, MaxPool))
    )
