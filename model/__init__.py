"""The networks of "Quo Vadis, Action Recognition?", one file per architecture, and their weights.

`I3D` is the network as DeepMind released it; `ConvNetLSTM`, `C3D`, `TwoStream` and `Fused` are those that the paper
compares it with; `build` makes any of them by name.

`chunked_endpoints` and `chunked_logits` run I3D on a video of any length in the memory of a short one,
`fold_batch_norm` makes a network faster to test, `recompute_activations` one that trains in less memory.

`load_i3d` and `load_checkpoint` read DeepMind's TensorFlow checkpoints (without TensorFlow), the two common PyTorch
ports, and the files that `save_run` and `save_safetensors` write. Whatever is wrong with a checkpoint is a
`CheckpointError`. `inflate` makes a network of videos of one of pictures; `load_inception_v1` reads torchvision's
googlenet, and `begin_with_pictures` puts it into every Inception of a network.
"""

from model.build import Network, build
from model.c3d import C3D
from model.checkpoint import Checkpoint, head_names
from model.checkpoint_names import Format, Naming, match_names
from model.chunks import LOGITS, chunked_endpoints, chunked_logits, step_frames
from model.fold import fold_batch_norm
from model.fused import Fused
from model.i3d import I3D
from model.inception import Inception, InceptionV1, recompute_activations
from model.inflate import begin_with_pictures, inflate, inflate_inception
from model.layers import (
    STREAM_CHANNELS,
    Architecture,
    BatchNorm,
    ConvUnit,
    MaxPool,
    OffsetBatchNorm,
    Stream,
    TemporalPadding,
    channels_last,
    check_range,
    synchronise_batch_norm,
)
from model.lstm import ConvNetLSTM
from model.runs import load_training, save_run, save_safetensors
from model.tensorflow_checkpoint import CheckpointError, list_variables, read_checkpoint
from model.two_stream import TwoStream
from model.weights import identify_released, load_checkpoint, load_i3d, load_inception_v1

__all__ = [
    "C3D",
    "I3D",
    "LOGITS",
    "STREAM_CHANNELS",
    "Architecture",
    "BatchNorm",
    "Checkpoint",
    "CheckpointError",
    "ConvNetLSTM",
    "ConvUnit",
    "Format",
    "Fused",
    "Inception",
    "InceptionV1",
    "MaxPool",
    "Naming",
    "Network",
    "OffsetBatchNorm",
    "Stream",
    "TemporalPadding",
    "TwoStream",
    "begin_with_pictures",
    "build",
    "channels_last",
    "check_range",
    "chunked_endpoints",
    "chunked_logits",
    "fold_batch_norm",
    "head_names",
    "identify_released",
    "inflate",
    "inflate_inception",
    "list_variables",
    "load_checkpoint",
    "load_i3d",
    "load_inception_v1",
    "load_training",
    "match_names",
    "read_checkpoint",
    "recompute_activations",
    "save_run",
    "save_safetensors",
    "step_frames",
    "synchronise_batch_norm",
]
