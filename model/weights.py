"""Loads I3D's weights: DeepMind's TensorFlow checkpoints, two PyTorch ports, and the files of this project's runs.

Whatever the source, the result is a state dict of `I3D` with nothing missing and nothing left over. Files are read as
data only (`weights_only`): a pickle that wants to run code is refused.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from model.checkpoint_names import Format, match_names, refuse
from model.i3d import I3D
from model.layers import STREAM_CHANNELS, Stream, TemporalPadding
from model.tensorflow_checkpoint import (
    CheckpointError,
    checkpoint_files,
    checkpoint_prefix,
    list_variables,
    read_checkpoint,
)

_PADDINGS: tuple[TemporalPadding, ...] = get_args(TemporalPadding)
_RUN_FORMAT = "quo-vadis-run"
_RUN_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one I3D network, and what is known of them.

    Attributes:
        state_dict: of an `I3D(num_classes, STREAM_CHANNELS[stream])`: of torch's default dtype, float32, all finite,
            in main memory.
        stream: "rgb" (3 input channels) or "flow" (2).
        num_classes: the number of logits.
        format: where the weights come from.
        sha256: file name → SHA-256 (hexadecimal) of each file read, as `sha256sum` prints it.
        classes: the classes' names in the order of the logits; None where the file does not say.
        temporal_padding: what the network was trained with, "zero" in all released ones.
    """

    state_dict: dict[str, Tensor]
    stream: Stream
    num_classes: int
    format: Format
    sha256: dict[str, str]
    classes: tuple[str, ...] | None = None
    temporal_padding: TemporalPadding = "zero"

    def network(self) -> I3D:
        """An I3D that holds these weights (the tensors themselves, no copies), in evaluation mode."""
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            model = I3D(self.num_classes, STREAM_CHANNELS[self.stream], temporal_padding=self.temporal_padding)
        model.load_state_dict(self.state_dict, assign=True)
        return model.eval()


def load_checkpoint(path: str | os.PathLike[str], stream: Stream | None = None) -> Checkpoint:
    """Reads a checkpoint of I3D, finding out its format.

    - "tensorflow": DeepMind's release; `path` is the prefix (`…/model.ckpt`) or the `.index` file.
    - "piergiaj", "hassony2": state dicts of these ports, bare or under "state_dict", with or without `module.` before
      each name. Their batch normalisation has a scale, which is folded into the convolution before it: exact, in this
      network too. (Both ports' released files are conversions of DeepMind's, so epsilon is DeepMind's, 1e-3.)
    - "run": what `save_run` wrote.

    Args:
        path: the file or the prefix.
        stream: the stream that the network must be of; None takes either.

    Raises:
        CheckpointError: if the file is missing, damaged, of no known format, wants to run code, does not fit I3D, or
            holds the other stream.
        ValueError: if there is no such stream.
    """
    if stream is not None and stream not in STREAM_CHANNELS:
        raise ValueError(f"there is no stream {stream!r}, only {', '.join(STREAM_CHANNELS)}")
    checkpoint = _load_any(Path(path))
    if stream is not None and checkpoint.stream != stream:
        channels = STREAM_CHANNELS[checkpoint.stream]
        article = {"rgb": "an rgb", "flow": "a flow"}
        raise CheckpointError(
            f"{path}: holds {article[checkpoint.stream]} network ({channels} input channels), "
            f"{article[stream]} one was asked for"
        )
    return checkpoint


def _load_any(path: Path) -> Checkpoint:
    prefix = checkpoint_prefix(path)
    if Path(f"{prefix}.index").is_file():
        return _load_tensorflow(prefix)
    if path.is_file():
        with _named_in_errors(path):
            return _load_torch(path)
    raise CheckpointError(f"{path}: there is no such file, and no {prefix.name}.index of a TensorFlow checkpoint")


def load_i3d(path: str | os.PathLike[str], stream: Stream | None = None) -> I3D:
    """An I3D with the weights of a checkpoint, in evaluation mode; arguments and errors as of `load_checkpoint`."""
    return load_checkpoint(path, stream).network()


def save_run(
    path: str | os.PathLike[str],
    model: I3D,
    stream: Stream,
    classes: Sequence[str] | None,
    training: Mapping[str, object] | None = None,
) -> None:
    """Writes a trained network to a file that `load_checkpoint` reads back.

    The file appears under its name only once it is complete and on disk. Equal weights give equal bytes.

    Args:
        path: the file to write; replaced if it is there.
        model: the network, not wrapped for parallel training.
        stream: what its input is.
        classes: the classes' names in the order of the logits, or None if they have none.
        training: what a trainer needs to go on from here, tensors and plain values; `load_training` gives it back.

    Raises:
        ValueError: if stream or classes contradict the model.
        OSError: if the file cannot be written; nothing is left behind.
    """
    if STREAM_CHANNELS.get(stream) != model.in_channels:
        raise ValueError(f"the stream is {stream!r}, the network has {model.in_channels} input channels")
    if classes is not None and (len(classes) != model.num_classes or len(set(classes)) != len(classes)):
        raise ValueError(
            f"{len(classes)} classes, {len(set(classes))} of them different, for a network of {model.num_classes}"
        )
    content = {
        "format": _RUN_FORMAT,
        "format_version": _RUN_VERSION,
        "architecture": "i3d",
        "stream": stream,
        "temporal_padding": model.temporal_padding,
        "classes": None if classes is None else list(classes),
        # Copies, because torch saves the whole memory that a tensor is a part of.
        "model": {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()},
    }
    if training is not None:
        content["training"] = dict(training)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        buffer = io.BytesIO()  # torch's own writer takes a full disk for a fault of its own
        torch.save(content, buffer)
        with unfinished.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or a power cut could undo the renaming
    finally:
        os.close(directory)


def load_training(path: str | os.PathLike[str]) -> tuple[Checkpoint, dict[str, Any]]:
    """Reads a run's file with the state of its training.

    Returns:
        The network, and what `save_run` was given as `training`.

    Raises:
        CheckpointError: as `load_checkpoint`; if the file is no run's or has no such state.
    """
    path = Path(path)
    with _named_in_errors(path):
        content = _torch_content(path)
        training = content.get("training")
        if "format" not in content or not isinstance(training, dict):
            raise CheckpointError("not the state of a training")
        return _load_run(path, content), training


@contextmanager
def _named_in_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _load_tensorflow(prefix: Path) -> Checkpoint:
    variables = list_variables(prefix)
    with _named_in_errors(prefix):  # before the data are read: a checkpoint of something else is not read at all
        names = match_names(variables, "tensorflow")
        refuse("not floating point", [name for name in names if variables[name][1].kind != "f"])
        shapes = {name: _released_shape(ours, variables[name][0]) for name, ours in names.items()}
        stream, num_classes = _identify(names, shapes)
    arrays = read_checkpoint(prefix)
    tensors = {ours: _released_tensor(arrays[name], shapes[name]) for name, ours in names.items()}
    with _named_in_errors(prefix):
        return Checkpoint(_finite(tensors), stream, num_classes, "tensorflow", _sha256(checkpoint_files(prefix)))


def _released_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a TensorFlow variable has in our network, where it can be one of ours; else its own."""
    if ours.endswith("weight") and len(shape) == 5:
        time, height, width, inputs, outputs = shape
        return outputs, inputs, time, height, width
    if shape[:-1] == (1, 1, 1, 1):  # how the 600-class network keeps its batch normalisation
        return shape[-1:]
    return shape


def _released_tensor(array: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 5:
        array = array.transpose(4, 3, 0, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32).reshape(shape))


def _load_torch(file: Path) -> Checkpoint:
    content = _torch_content(file)
    if "training" in content:
        raise CheckpointError("holds a training to resume, whose statistics are not measured; use model.pt or best.pt")
    if "format" in content:
        return _load_run(file, content)

    inner = content.get("state_dict", content)
    if not isinstance(inner, dict) or not all(isinstance(name, str) for name in inner):
        raise CheckpointError("holds no state dict: its names are not all text")
    if inner and all(name.startswith("module.") for name in inner):  # saved from within DataParallel
        inner = {name.removeprefix("module."): value for name, value in inner.items()}
    port: Format
    if "Conv3d_1a_7x7.conv3d.weight" in inner:
        port = "piergiaj"
    elif "conv3d_1a_7x7.conv3d.weight" in inner:
        port = "hassony2"
    else:
        raise CheckpointError(f"no known naming of I3D's weights; the first names are {list(inner)[:3]}")
    names = match_names(inner, port)
    stream, num_classes, tensors = _take_tensors(names, inner)
    return Checkpoint(_finite(_fold_scales(tensors)), stream, num_classes, port, _sha256([file]))


def _torch_content(file: Path) -> dict[Any, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise CheckpointError(
            f"not a file of plain tensors as torch.save writes them, or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}, not a state dict")
    return content


def _load_run(file: Path, content: Mapping[str, object]) -> Checkpoint:
    version = content.get("format_version")
    if content["format"] != _RUN_FORMAT or version != _RUN_VERSION:
        raise CheckpointError(
            f"has format {content['format']!r}, version {version!r}; known is {_RUN_FORMAT!r}, version {_RUN_VERSION}"
        )
    if content.get("architecture") != "i3d":
        raise CheckpointError(f"holds the architecture {content.get('architecture')!r}, not 'i3d'")
    padding = next((known for known in _PADDINGS if known == content.get("temporal_padding")), None)
    if padding is None:
        raise CheckpointError(f"has the temporal padding {content.get('temporal_padding')!r}")
    model = content.get("model")
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise CheckpointError("holds no state dict under 'model'")

    stream, num_classes, tensors = _take_tensors(match_names(model, "run"), model)
    if content.get("stream") != stream:
        raise CheckpointError(f"says stream {content.get('stream')!r}, its network is of {stream!r}")
    classes = content.get("classes")
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise CheckpointError("its classes are not a list of names")
        if len(classes) != num_classes:
            raise CheckpointError(f"names {len(classes)} classes, its network has {num_classes}")
        classes = tuple(classes)
    return Checkpoint(_finite(tensors), stream, num_classes, "run", _sha256([file]), classes, padding)


def _take_tensors(names: Mapping[str, str], values: Mapping[str, object]) -> tuple[Stream, int, dict[str, Tensor]]:
    """Stream, number of classes and tensors of the default dtype under our names; types and shapes are checked."""
    tensors = {name: value for name in names if isinstance(value := values[name], Tensor) and _is_plain(value)}
    refuse("no plain tensors of floating point", [name for name in names if name not in tensors])
    stream, num_classes = _identify(names, {name: tuple(tensors[name].shape) for name in names})
    state = {ours: tensors[name].detach().to(torch.get_default_dtype()).contiguous() for name, ours in names.items()}
    return stream, num_classes, state


def _is_plain(tensor: Tensor) -> bool:
    """Whether these are floats in memory.

    A file can also hold sparse tensors, subclasses, and tensors with fewer data than elements (none at all, or one
    number for a petabyte); none of those are weights.
    """
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def _identify(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Stream, int]:
    """Which I3D has tensors of these shapes.

    Args:
        names: their name → our name.
        shapes: their name → shape, its dimensions in our order.
    """
    ours = {names[name]: shape for name, shape in shapes.items()}
    stem, head = ours["Conv3d_1a_7x7.conv.weight"], ours["Logits.weight"]
    if len(stem) != 5 or len(head) != 5 or not head[0]:
        raise CheckpointError(f"the first convolution has the shape {list(stem)}, the last one {list(head)}")
    stream = next((stream for stream, channels in STREAM_CHANNELS.items() if channels == stem[1]), None)
    if stream is None:
        raise CheckpointError(f"the first convolution takes {stem[1]} channels, neither 3 (rgb) nor 2 (flow)")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in I3D(head[0], stem[1]).state_dict().items()}
    for name in list(expected):  # a port's scale has the shape of its offset
        if name.endswith(".norm.bias"):
            expected[name.replace("bias", "weight")] = expected[name]
    refuse(
        "of the wrong shape",
        [
            f"{name} {list(shape)} instead of {list(expected[names[name]])}"
            for name, shape in shapes.items()
            if shape != expected[names[name]]
        ],
    )
    return stream, head[0]


def _fold_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moves the scale γ of each batch normalisation into the convolution before it.

    γ (w·x - mean) / sqrt(var + ε) = (γw·x - γ mean) / sqrt(var + ε), so weights and means are scaled, variances not.
    """
    folded = dict(tensors)
    for name in tensors:
        if name.endswith(".norm.weight"):
            unit = name.removesuffix(".norm.weight")
            scale = folded.pop(name)
            folded[f"{unit}.conv.weight"] = folded[f"{unit}.conv.weight"] * scale.view(-1, 1, 1, 1, 1)
            folded[f"{unit}.norm.running_mean"] = folded[f"{unit}.norm.running_mean"] * scale
    return folded


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    refuse("not finite", [name for name, tensor in tensors.items() if not tensor.isfinite().all()])
    return tensors


def _sha256(files: Sequence[Path]) -> dict[str, str]:
    sums = {}
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        sums[file.name] = digest.hexdigest()
    return sums
