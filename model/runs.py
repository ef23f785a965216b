"""This project's own files: those of training runs, and networks alone as safetensors."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from model.build import Network, build
from model.checkpoint import (
    Checkpoint,
    check_shapes,
    finite,
    head_names,
    plain_tensors,
    require_classes,
    weight_shapes,
)
from model.checkpoint_names import Format, require_names
from model.i3d import I3D
from model.inception import MINIMUM_SIDE
from model.layers import STREAM_CHANNELS, Architecture, Stream, TemporalPadding
from model.tensor_files import named_in_errors, read_tensor_file, sha256_of, write_safetensors, write_torch
from model.tensorflow_checkpoint import CheckpointError

_VERSION = 4
_KINDS: dict[str, Format] = {"quo-vadis-run": "run", "quo-vadis-network": "safetensors"}
_ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
_PADDINGS: tuple[TemporalPadding, ...] = get_args(TemporalPadding)
_SIDES = range(MINIMUM_SIDE, 1081, 2)  # of pictures and squares cut from them, in pixels

Name = TypeVar("Name", bound=str)


def save_run(
    path: str | os.PathLike[str],
    network: Network,
    classes: Sequence[str] | None,
    training: Mapping[str, object] | None = None,
    *,
    crop: int | None = None,
    short_side: int | None = None,
    hold_out: float | None = None,
) -> None:
    """Writes a trained network to a file that `load_checkpoint` reads back.

    The file appears under its name only once it is complete and on disk. Equal weights give equal bytes.

    Args:
        path: the file to write; replaced if it is there.
        network: not wrapped for parallel training.
        classes: the classes' names in the order of the logits, or None if they have none.
        training: what a trainer needs to go on from here, tensors and plain values; `load_training` gives it back.
        crop: side of the squares that it was trained on, in pixels, even; None where that is unknown.
        short_side: of the stored pictures that these were cut from, in pixels, even; None where that is unknown.
        hold_out: share of the training clips that it was not trained on; None where that is unknown, or none.

    Raises:
        ValueError: if the classes contradict the network, or there are no such pictures or shares.
        OSError: if the file cannot be written; nothing is left behind.
    """
    header = _header("quo-vadis-run", network, classes, crop, short_side, hold_out)
    content = {**header, "model": _weights(network)}
    if training is not None:
        content["training"] = dict(training)
    write_torch(Path(path), content)


def save_safetensors(
    path: str | os.PathLike[str],
    network: Network,
    classes: Sequence[str] | None,
    *,
    crop: int | None = None,
    short_side: int | None = None,
    hold_out: float | None = None,
) -> None:
    """Writes a network as safetensors: its weights, and as metadata what else `load_checkpoint` needs.

    The file appears under its name only once it is complete and on disk. Equal weights give equal bytes.

    Args:
        path: the file to write; replaced if it is there.
        network: not wrapped for parallel training.
        classes: the classes' names in the order of the logits, or None if they have none.
        crop: as of `save_run`.
        short_side: as of `save_run`.
        hold_out: as of `save_run`.

    Raises:
        ValueError: as `save_run`.
        OSError: if the file cannot be written; nothing is left behind.
    """
    header = _header("quo-vadis-network", network, classes, crop, short_side, hold_out)
    write_safetensors(Path(path), _weights(network), header)


def load_training(path: str | os.PathLike[str]) -> tuple[Checkpoint, dict[str, Any]]:
    """Reads a run's file with the state of its training.

    Returns:
        The network, and what `save_run` was given as `training`.

    Raises:
        CheckpointError: as `load_checkpoint`; if the file is no run's or has no such state.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with named_in_errors(path):
        content = read_tensor_file(path)
        training = content.get("training")
        if "format" not in content or not isinstance(training, dict):
            raise CheckpointError("not the state of a training")
        return own_checkpoint(path, content), training


def own_checkpoint(file: Path, content: Mapping[Any, object]) -> Checkpoint:
    """The network in what `read_tensor_file` found in a file of ours.

    Raises:
        CheckpointError: if it is of another version or contradicts itself.
    """
    format, version = _one_of(_KINDS, content.get("format")), content.get("format_version")
    if format is None or type(version) is not int or version != _VERSION:
        raise CheckpointError(
            f"has format {_shown(content.get('format'))}, version {_shown(version)}; "
            f"known are {' and '.join(_KINDS)}, version {_VERSION}"
        )
    architecture, streams, padding = _kind_of_network(content)
    model = content.get("model")
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise CheckpointError("holds no state dict under 'model'")
    names = {name: name for name in weight_shapes(architecture, streams, 1)}
    require_names(model, names)
    tensors = plain_tensors(names, model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    head = shapes[head_names(architecture, streams)[0]]
    num_classes = require_classes(max(head[0], 1)) if head else 1
    check_shapes(names, shapes, weight_shapes(architecture, streams, num_classes))
    classes = _classes(content.get("classes"), num_classes)
    crop, short_side = _pictures(content)
    return Checkpoint(
        finite(tensors),
        architecture,
        streams,
        num_classes,
        _KINDS[format],
        sha256_of([file]),
        classes,
        padding,
        crop,
        short_side,
        _share(content),
    )


def _kind_of_network(content: Mapping[Any, object]) -> tuple[Architecture, tuple[Stream, ...], TemporalPadding]:
    architecture = _one_of(_ARCHITECTURES, content.get("architecture"))
    if architecture is None:
        raise CheckpointError(
            f"has the architecture {_shown(content.get('architecture'))}, not one of {_ARCHITECTURES}"
        )
    padding = _one_of(_PADDINGS, content.get("temporal_padding"))
    if padding is None:
        raise CheckpointError(f"has the temporal padding {_shown(content.get('temporal_padding'))}")
    listed = content.get("streams")
    streams = tuple(_one_of(STREAM_CHANNELS, name) for name in listed) if isinstance(listed, list) else ()
    known = tuple(stream for stream in streams if stream is not None)
    try:
        if len(known) != len(streams):
            raise ValueError("its streams are not rgb and flow")
        with torch.device("meta"):
            build(architecture, known, 1, temporal_padding=padding)
    except ValueError as error:
        raise CheckpointError(f"names a network that does not exist: {error}") from error
    return architecture, known, padding


def _one_of(known: Iterable[Name], value: object) -> Name | None:
    """The known name that a value from a file is, if it is one."""
    return next((name for name in known if isinstance(value, str) and name == value), None)


def _shown(value: object) -> str:
    """A value for a message; what is nested could be of any length."""
    return repr(value)[:80] if isinstance(value, str | int) else f"of type {type(value).__name__}"


def _classes(names: object, num_classes: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("its classes are not a list of names")
    if len(names) != num_classes:
        raise CheckpointError(f"names {len(names)} classes, its network has {num_classes}")
    return tuple(names)


def _pictures(content: Mapping[Any, object]) -> tuple[int | None, int | None]:
    """Crop and short side of the pictures that a network was trained on."""
    found: dict[str, int | None] = {}
    for name in ("crop", "short_side"):
        pixels = content.get(name)
        if pixels is not None and (type(pixels) is not int or pixels not in _SIDES):
            raise CheckpointError(
                f"has the {name} {_shown(pixels)}, not an even number of pixels from {_SIDES[0]} to {_SIDES[-1]}"
            )
        found[name] = pixels
    crop, short_side = found["crop"], found["short_side"]
    if crop is not None and short_side is not None and crop > short_side:
        raise CheckpointError(f"has the crop {crop}, which is larger than its short_side {short_side}")
    return crop, short_side


def _share(content: Mapping[Any, object]) -> float | None:
    """The share of the training clips that a network was not trained on."""
    share = content.get("hold_out")
    if share is not None and not (isinstance(share, float) and 0 < share < 1):
        raise CheckpointError(
            f"has the hold_out {share if isinstance(share, float) else _shown(share)}, not a share between 0 and 1"
        )
    return share


def _header(
    kind: str,
    network: Network,
    classes: Sequence[str] | None,
    crop: int | None,
    short_side: int | None,
    hold_out: float | None,
) -> dict[str, object]:
    if classes is not None and (len(classes) != network.num_classes or len(set(classes)) != len(classes)):
        raise ValueError(
            f"{len(classes)} classes, {len(set(classes))} of them different, for a network of {network.num_classes}"
        )
    trained_on = {"crop": crop, "short_side": short_side, "hold_out": hold_out}
    try:
        _pictures(trained_on)
        _share(trained_on)
    except CheckpointError as error:
        raise ValueError(f"a network that {error}") from error
    return {
        "format": kind,
        "format_version": _VERSION,
        "architecture": network.architecture,
        "streams": list(network.streams),
        "temporal_padding": network.temporal_padding if isinstance(network, I3D) else "zero",
        "classes": None if classes is None else list(classes),
        **trained_on,
    }


def _weights(network: Network) -> dict[str, Tensor]:
    """Copies, because torch saves the whole memory that a tensor is a part of."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
