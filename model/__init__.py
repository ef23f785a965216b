"""The networks of "Quo Vadis, Action Recognition?", one file per architecture, and their weights.

`I3D` is the network as DeepMind released it; `load_i3d` and `load_checkpoint` read DeepMind's TensorFlow checkpoints
(without TensorFlow), the two common PyTorch ports, and the files that `save_run` writes. Whatever is wrong with a
checkpoint is a `CheckpointError`.
"""

from model.checkpoint_names import Format, match_names
from model.i3d import I3D
from model.inception import Inception, InceptionV1
from model.inflate import begin_with_pictures, inflate, inflate_inception
from model.layers import ConvUnit, MaxPool, OffsetBatchNorm, TemporalPadding, check_range, synchronise_batch_norm
from model.tensorflow_checkpoint import CheckpointError, list_variables, read_checkpoint
from model.weights import STREAM_CHANNELS, Checkpoint, Stream, load_checkpoint, load_i3d, load_training, save_run

__all__ = [
    "I3D",
    "STREAM_CHANNELS",
    "Checkpoint",
    "CheckpointError",
    "ConvUnit",
    "Format",
    "Inception",
    "InceptionV1",
    "MaxPool",
    "OffsetBatchNorm",
    "Stream",
    "TemporalPadding",
    "begin_with_pictures",
    "check_range",
    "inflate",
    "inflate_inception",
    "list_variables",
    "load_checkpoint",
    "load_i3d",
    "load_training",
    "match_names",
    "read_checkpoint",
    "save_run",
    "synchronise_batch_norm",
]
