"""The command `i3d-table1`: what networks and samplers amount to, beside what the paper says of its own."""

from collections.abc import Sequence

import click
import torch

from manifests.sample import RgbCoding
from model import I3D, STREAM_CHANNELS, Architecture, Stream, build
from model.receptive_field import receptive_fields
from train.plan import Pictures
from train.samplers import whole_clip_windows, window_of

CLIP_FRAMES = 250  # a clip of Kinetics, 10 seconds
CLASSES = 400

# Table 1: parameters, frames and temporal footprint in training, and in testing.
PAPER: dict[Architecture, tuple[str, str, str, str, str]] = {
    "lstm": ("9M", "25 rgb", "5 s", "50 rgb", "10 s"),
    "c3d": ("79M", "16 rgb", "0.64 s", "240 rgb", "9.6 s"),
    "two-stream": ("12M", "1 rgb, 10 flow", "0.4 s", "25 rgb, 250 flow", "10 s"),
    "fused": ("39M", "5 rgb, 50 flow", "2 s", "25 rgb, 250 flow", "10 s"),
    "i3d": ("25M", "64 rgb, 64 flow", "2.56 s", "250 rgb, 250 flow", "10 s"),
}
# Figure 3, behind its max-pools and its average pool.
FIGURE_3 = {
    "MaxPool3d_2a_3x3": (7, 11, 11),
    "MaxPool3d_3a_3x3": (11, 27, 27),
    "MaxPool3d_4a_3x3": (23, 75, 75),
    "MaxPool3d_5a_2x2": (59, 219, 219),
    "AveragePool": (99, 539, 539),
}


@click.command("i3d-table1", context_settings={"help_option_names": ["-h", "--help"]})
def table1_command() -> None:
    """Print table 1 and the receptive fields of figure 3, the paper's beside those of this code.

    Example: i3d-table1
    """
    click.echo(f"{'Table 1':<38} {'paper':<20} this code")
    names = ("parameters", "frames in training", "footprint in training", "frames in testing", "footprint in testing")
    for architecture, paper in PAPER.items():
        for name, theirs, ours in zip(names, paper, table_row(architecture), strict=True):
            click.echo(f"{architecture:<15} {name:<22} {theirs:<20} {ours}")
    click.echo("A clip of 250 frames has 249 flows, so its last snippet of flow begins a frame early.")

    click.echo(f"\n{'Receptive field':<38} {'figure 3':<20} this code")
    for name, size in fields_of_i3d().items():
        drawn = _extents(FIGURE_3[name]) if name in FIGURE_3 else ""
        click.echo(f"{name:<38} {drawn:<20} {_extents(size)}")
    click.echo(
        "Frames x pixels x pixels. The figure's last two are those of a network with four modules between the third\n"
        "max-pool and the fourth; Inception-v1 has five there, as the released I3D has."
    )


def streams_in_table(architecture: Architecture) -> tuple[Stream, ...]:
    """What the network of table 1 sees."""
    return ("rgb",) if architecture in ("lstm", "c3d") else ("rgb", "flow")


def parameters(architecture: Architecture) -> int:
    """How many numbers are learned for 400 classes, by all networks that table 1 counts: of I3D, one of each stream."""
    streams = streams_in_table(architecture)
    groups = [(stream,) for stream in streams] if architecture == "i3d" else [streams]
    with torch.device("meta"):  # for their shapes alone
        networks = [build(architecture, group, CLASSES) for group in groups]
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def table_row(architecture: Architecture) -> tuple[str, str, str, str, str]:
    """Ours in the places of `PAPER`'s: from the networks, and from the samplers on a clip of 10 seconds."""
    streams = streams_in_table(architecture)
    training = [window_of(architecture, streams).at(0, _stored(streams))]
    groups = [(stream,) for stream in streams] if architecture == "i3d" else [streams]
    testing = [window for group in groups for window in whole_clip_windows(architecture, group, _stored(group))]
    return (
        f"{parameters(architecture):,}",
        _counted(training),
        f"{footprint_seconds(training):g} s",
        _counted(testing),
        f"{footprint_seconds(testing):g} s",
    )


def footprint_seconds(windows: Sequence[Pictures]) -> float:
    """How much of a clip all streams of all windows cover together, each picture up to the next of its window."""
    covered: set[int] = set()
    for window in windows:
        for numbers in window.values():
            spacing = numbers[1] - numbers[0] if len(numbers) > 1 else 1
            covered.update(range(numbers[0], numbers[-1] + spacing))
    return len(covered) / RgbCoding().frame_rate


def fields_of_i3d() -> dict[str, tuple[int, ...]]:
    """Receptive fields, time x height x width, of I3D's layers."""
    with torch.device("meta"):
        network = I3D(CLASSES, STREAM_CHANNELS["rgb"])
    return {name: field.size for name, field in receptive_fields(network).items()}


def _stored(streams: Sequence[Stream]) -> int:
    """Pictures that a clip has of these streams: flows, one less than frames, where they are seen."""
    return CLIP_FRAMES - 1 if "flow" in streams else CLIP_FRAMES


def _counted(windows: Sequence[Pictures]) -> str:
    """How many pictures of each stream, such as "5 rgb, 50 flow"; those that are seen twice count twice."""
    streams = dict.fromkeys(stream for window in windows for stream in window)
    return ", ".join(f"{sum(len(window.get(s, ())) for window in windows)} {s}" for s in streams)


def _extents(size: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in size)
