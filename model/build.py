"""The networks by name: which there are, and how one is made."""

from collections.abc import Sequence

from model.c3d import C3D
from model.fused import Fused
from model.i3d import I3D
from model.layers import STREAM_CHANNELS, Architecture, Stream, TemporalPadding
from model.lstm import ConvNetLSTM
from model.two_stream import TwoStream

Network = ConvNetLSTM | C3D | TwoStream | Fused | I3D


def build(
    architecture: Architecture,
    streams: Sequence[Stream],
    num_classes: int,
    *,
    dropout: float = 0.5,
    temporal_padding: TemporalPadding = "zero",
) -> Network:
    """A network with random weights.

    Args:
        architecture: which.
        streams: what it takes; "lstm", "c3d" and "i3d" one of "rgb" and "flow", the others also both.
        num_classes: how many logits.
        dropout: probability of dropping a feature in training.
        temporal_padding: of I3D, see there.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: if there is no such network.
    """
    if temporal_padding != "zero" and architecture != "i3d":
        raise ValueError(f"temporal_padding {temporal_padding!r} is of i3d alone, not of {architecture}")
    match architecture:
        case "two-stream":
            return TwoStream(num_classes, streams, dropout)
        case "fused":
            return Fused(num_classes, streams, dropout)
        case "lstm":
            return ConvNetLSTM(num_classes, _channels(architecture, streams), dropout)
        case "c3d":
            return C3D(num_classes, _channels(architecture, streams), dropout)
        case "i3d":
            return I3D(num_classes, _channels(architecture, streams), dropout, temporal_padding)
    raise ValueError(f"there is no architecture {architecture!r}, only lstm, c3d, two-stream, fused, i3d")


def _channels(architecture: Architecture, streams: Sequence[Stream]) -> int:
    """Input channels of a network of one stream."""
    if len(streams) != 1 or streams[0] not in STREAM_CHANNELS:
        raise ValueError(f"{architecture} takes one stream, rgb or flow, not {', '.join(streams) or 'none'}")
    return STREAM_CHANNELS[streams[0]]
