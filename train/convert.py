"""The command `i3d-convert`: a checkpoint of any format, or a network of pictures, as a file of this project."""

from pathlib import Path
from typing import get_args

import click
import torch

from manifests.clip import printable
from model import (
    Architecture,
    CheckpointError,
    Network,
    begin_with_pictures,
    build,
    load_checkpoint,
    load_inception_v1,
    save_safetensors,
)
from train.evaluate import classes_of
from train.options import CONTEXT, check_outputs
from train.picture_size import trained_on
from train.stream import Inputs, streams_of

SUFFIX = ".safetensors"
BEGUN_WITH_PICTURES = [name for name in get_args(Architecture) if name != "c3d"]  # which has no Inception-v1


@click.command("i3d-convert", context_settings=CONTEXT)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--classes", type=click.IntRange(1, 1_000_000), help="Put a new head of so many classes in place of the old one."
)
@click.option(
    "--model",
    type=click.Choice(BEGUN_WITH_PICTURES),
    help="IN is an Inception-v1 of pictures: begin this network of videos with it (with --classes).",
)
@click.option("--stream", type=click.Choice(get_args(Inputs)), help="With --model: what the network sees.")
def convert_command(
    source: Path, target: Path, classes: int | None, model: Architecture | None, stream: Inputs | None
) -> None:
    """Write the network of a checkpoint as safetensors, which --init, --rgb and --flow take as they take IN.

    IN is the prefix of one of DeepMind's TensorFlow checkpoints, a file of one of the PyTorch ports of I3D, or a run's
    model.pt or best.pt. With --model it is torchvision's googlenet, or an Inception-v1 of this project.

    Example: i3d-convert rgb_imagenet/model.ckpt rgb_imagenet.safetensors

    Example: i3d-convert googlenet.pth begin.safetensors --model i3d --stream flow --classes 400
    """
    try:
        if target.suffix != SUFFIX:
            raise ValueError(f"{target}: the output's name must end in {SUFFIX}")
        if (model is None) != (stream is None) or (model is not None and classes is None):
            raise ValueError("--model, --stream and --classes belong together; --classes may also stand alone")
        check_outputs({"OUT": target.resolve()}, {"IN": source})
        torch.manual_seed(0)  # of new layers: equal input gives equal bytes
        names, crop, short_side, share = None, None, None, None
        if model is not None and stream is not None and classes is not None:
            network = _begun(source, model, stream, classes)
        else:
            checkpoint = load_checkpoint(source)
            (crop, short_side), share = trained_on(checkpoint), checkpoint.hold_out
            if classes is not None:
                checkpoint = checkpoint.with_new_head(classes)
            named = classes_of(checkpoint) if classes is None else None
            network, names = checkpoint.network(), named.labels if named else None
        save_safetensors(target, network, names, crop=crop, short_side=short_side, hold_out=share)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    click.echo(f"{target}: {network.architecture} of {' and '.join(network.streams)}, {network.num_classes} classes")


def _begun(source: Path, model: Architecture, stream: Inputs, classes: int) -> Network:
    pictures = load_inception_v1(source)
    network = build(model, streams_of(stream), classes)
    begin_with_pictures(network, pictures)
    return network
