"""Loads weights: DeepMind's TensorFlow checkpoints, PyTorch ports, torchvision's googlenet, and this project's files.

Whatever the source, the result is a state dict with nothing missing and nothing left over. Files are read as data only:
a pickle that wants to run code is refused.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import (
    Checkpoint,
    check_shapes,
    finite,
    fold_scales,
    plain_tensors,
    require_classes,
    weight_shapes,
)
from model.checkpoint_names import match_names, naming_of, refuse, require_names
from model.i3d import I3D
from model.inception import InceptionV1
from model.layers import STREAM_CHANNELS, Stream, check_streams
from model.runs import own_checkpoint
from model.tensor_files import named_in_errors, read_tensor_file, sha256_of
from model.tensorflow_checkpoint import (
    CheckpointError,
    checkpoint_files,
    checkpoint_prefix,
    list_variables,
    read_checkpoint,
)

_PICTURES_STEM = "body.Conv2d_1a_7x7.conv.weight"


def load_checkpoint(path: str | os.PathLike[str], streams: Sequence[Stream] | None = None) -> Checkpoint:
    """Reads the checkpoint of a network, finding out its format, architecture, streams and number of classes.

    - "tensorflow": DeepMind's release of I3D; `path` is the prefix (`…/model.ckpt`) or the `.index` file.
    - "piergiaj", "hassony2": state dicts of these ports of I3D, bare or under "state_dict", with or without `module.`
      before each name, by torch.save or as safetensors. Their batch normalisation has a scale, which is folded into the
      convolution before it: exact, in this network too. (Both ports' released files are conversions of DeepMind's, so
      epsilon is DeepMind's, 1e-3.)
    - "run": what `save_run` wrote; "safetensors": what `save_safetensors` wrote.

    Args:
        path: the file or the prefix.
        streams: the streams that the network must take; None takes any.

    Raises:
        CheckpointError: if the file is missing, damaged, of no known format, wants to run code, does not fit its
            network, or holds a network of other streams.
        ValueError: if there are no such streams.
    """
    if streams is not None:
        check_streams(streams)
    checkpoint = _load_any(Path(path))
    if streams is not None and checkpoint.streams != tuple(streams):
        raise CheckpointError(
            f"{path}: holds a network of {' and '.join(checkpoint.streams)}, "
            f"one of {' and '.join(streams)} was asked for"
        )
    return checkpoint


def _load_any(path: Path) -> Checkpoint:
    prefix = checkpoint_prefix(path)
    if Path(f"{prefix}.index").is_file():
        return _load_tensorflow(prefix)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file, and no {prefix.name}.index of a TensorFlow checkpoint")
    with named_in_errors(path):
        content = read_tensor_file(path)
        if "training" in content:
            raise CheckpointError(
                "holds a training to resume, whose statistics are not measured; use model.pt or best.pt"
            )
        return own_checkpoint(path, content) if "format" in content else _load_port(path, content)


def load_i3d(path: str | os.PathLike[str], stream: Stream | None = None) -> I3D:
    """An I3D with the weights of a checkpoint, in evaluation mode.

    Args:
        path: as of `load_checkpoint`.
        stream: the stream that the network must be of; None takes either.

    Raises:
        CheckpointError: as `load_checkpoint`, and if the checkpoint is of another architecture.
        ValueError: if there is no such stream.
    """
    checkpoint = load_checkpoint(path, None if stream is None else (stream,))
    network = checkpoint.network()
    if not isinstance(network, I3D):
        raise CheckpointError(f"{path}: holds the architecture {checkpoint.architecture}, not i3d")
    return network


def load_inception_v1(path: str | os.PathLike[str]) -> InceptionV1:
    """An Inception-v1 of pictures, in evaluation mode, from torchvision's googlenet or from our own state dict.

    Both may be bare or under "state_dict", with or without `module.` before each name, by torch.save or as safetensors.
    torchvision's differs from ours in this:

    - Its batch normalisation has a scale, which is folded into the convolution before it: exact.
    - Its two auxiliary classifiers, of training alone, are left out.
    - Its stem pads 3 pixels on all sides, ours (TensorFlow's SAME, as the weights were trained) 2 before and 3 after
      where the side is even: the same filters, half a pixel of its output to the side. All else agrees on pictures
      whose sides 32 divides; on others its pools begin at the first pixel, ours centre what is left over.
    - Its published weights are TensorFlow's and take [-1, 1] as ours do, which is what its `transform_input` is for; a
      googlenet trained without that takes an input normalised otherwise, which nothing in the file tells.

    Args:
        path: the file.

    Raises:
        CheckpointError: if the file is missing, damaged, of neither kind, wants to run code, or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with named_in_errors(path):
        values = _state_dict(read_tensor_file(path))
        if naming_of(values) == "torchvision":
            names = match_names(values, "torchvision")
        elif _PICTURES_STEM in values:
            with torch.device("meta"):
                names = {name: name for name in InceptionV1().state_dict()}
            require_names(values, names)
        else:
            raise CheckpointError(f"no known naming of an Inception-v1; the first names are {list(values)[:3]}")
        tensors = plain_tensors(names, values)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        num_classes, in_channels = _sizes(shapes[_PICTURES_STEM], shapes["head.weight"], dimensions=2)
        with torch.device("meta"):
            network = InceptionV1(num_classes, in_channels)
        check_shapes(names, shapes, {name: tensor.shape for name, tensor in network.state_dict().items()})
        network.load_state_dict(finite(fold_scales(tensors)), assign=True)
    return network.eval()


def identify_released(path: str | os.PathLike[str]) -> tuple[Stream, int]:
    """Stream and number of classes of one of DeepMind's checkpoints; only its `.index` file needs to be there.

    Args:
        path: the checkpoint's prefix or its `.index` file.

    Raises:
        CheckpointError: if the index is missing or damaged, or does not list exactly the variables of an I3D.
    """
    prefix = checkpoint_prefix(path)
    _, stream, num_classes = _identify_released(prefix)
    return stream, num_classes


def _identify_released(prefix: Path) -> tuple[dict[str, str], Stream, int]:
    """Their name → our name, stream, number of classes."""
    variables = list_variables(prefix)
    with named_in_errors(prefix):
        names = match_names(variables, "tensorflow")
        refuse("not floating point", [name for name in names if variables[name][1].kind != "f"])
        shapes = {ours: _released_shape(ours, variables[name][0]) for name, ours in names.items()}
        return names, *_identify(names, shapes)


def _load_tensorflow(prefix: Path) -> Checkpoint:
    names, stream, num_classes = _identify_released(prefix)
    arrays = read_checkpoint(prefix)
    tensors = {ours: _released_tensor(ours, arrays[name]) for name, ours in names.items()}
    with named_in_errors(prefix):
        sums = sha256_of(checkpoint_files(prefix))
        return Checkpoint(finite(tensors), "i3d", (stream,), num_classes, "tensorflow", sums)


def _released_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a TensorFlow variable has in our network, where it can be one of ours; else its own."""
    if ours.endswith("weight") and len(shape) == 5:
        time, height, width, inputs, outputs = shape
        return outputs, inputs, time, height, width
    if shape[:-1] == (1, 1, 1, 1):  # how the 600-class network keeps its batch normalisation
        return shape[-1:]
    return shape


def _released_tensor(ours: str, array: np.ndarray) -> Tensor:
    shape = _released_shape(ours, array.shape)
    if len(shape) == 5:
        array = array.transpose(4, 3, 0, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32).reshape(shape))


def _load_port(file: Path, content: dict[Any, Any]) -> Checkpoint:
    values = _state_dict(content)
    naming = naming_of(values)
    if naming == "torchvision" or _PICTURES_STEM in values:
        raise CheckpointError("holds an Inception-v1 of pictures; `i3d-convert --model` begins a network with it")
    if naming is None or naming == "tensorflow":
        raise CheckpointError(f"no known naming of I3D's weights; the first names are {list(values)[:3]}")
    names = match_names(values, naming)
    tensors = plain_tensors(names, values)
    stream, num_classes = _identify(names, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return Checkpoint(finite(fold_scales(tensors)), "i3d", (stream,), num_classes, naming, sha256_of([file]))


def _state_dict(content: dict[Any, Any]) -> dict[str, object]:
    """The state dict that a file holds, bare or under "state_dict", or saved from within DataParallel."""
    values = content.get("state_dict", content)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise CheckpointError("holds no state dict: its names are not all text")
    if values and all(name.startswith("module.") for name in values):
        values = {name.removeprefix("module."): value for name, value in values.items()}
    return values


def _identify(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Stream, int]:
    """Of which stream and how many classes an I3D with tensors of these shapes is.

    Args:
        names: their name → our name.
        shapes: our name → shape.
    """
    num_classes, channels = _sizes(shapes["Conv3d_1a_7x7.conv.weight"], shapes["Logits.weight"], dimensions=3)
    stream = next((stream for stream, known in STREAM_CHANNELS.items() if known == channels), None)
    if stream is None:
        raise CheckpointError(f"the first convolution takes {channels} channels, neither 3 (rgb) nor 2 (flow)")
    check_shapes(names, shapes, weight_shapes("i3d", (stream,), num_classes))
    return stream, num_classes


def _sizes(stem: tuple[int, ...], head: tuple[int, ...], dimensions: int) -> tuple[int, int]:
    """Numbers of classes and of input channels, by the shapes of the first convolution and the last layer."""
    if len(stem) != dimensions + 2 or not stem[1] or len(head) not in (2, 5) or not head[0]:
        raise CheckpointError(f"the first convolution has the shape {list(stem)}, the last layer {list(head)}")
    return require_classes(head[0]), stem[1]
