"""Small inputs of every network of the paper, and networks whose weights and statistics are random."""

import torch
from torch import Tensor

from model import build

BOTH = ("rgb", "flow")
CLASSES = 3
CHANNELS = {"rgb": 3, "flow": 2}
# Frames of each stream in training, and the smallest picture.
SHAPES = {
    ("lstm", ("rgb",)): ({"rgb": 25}, (32, 32)),
    ("lstm", ("flow",)): ({"flow": 25}, (32, 32)),
    ("c3d", ("rgb",)): ({"rgb": 16}, (112, 112)),
    ("two-stream", BOTH): ({"rgb": 1, "flow": 10}, (64, 64)),
    ("two-stream", ("rgb",)): ({"rgb": 1}, (64, 64)),
    ("two-stream", ("flow",)): ({"flow": 10}, (64, 64)),
    ("fused", BOTH): ({"rgb": 5, "flow": 50}, (32, 32)),
    ("fused", ("flow",)): ({"flow": 50}, (32, 32)),
    ("i3d", ("rgb",)): ({"rgb": 9}, (32, 32)),
    ("i3d", ("flow",)): ({"flow": 9}, (32, 32)),
}


def random_values(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def clips(case, batch: int = 2, side: tuple[int, int] | None = None, seed: int = 0) -> list[Tensor]:
    frames, smallest = SHAPES[case]
    return [random_values(batch, CHANNELS[s], n, *(side or smallest), seed=seed) for s, n in frames.items()]


def random_network(architecture, streams, num_classes=CLASSES):
    """Statistics and offsets are not the initial ones. Its own initialisation takes seconds and is tested elsewhere."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = build(architecture, streams, num_classes)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 0.6)  # so that activations neither die nor explode from layer to layer
            elif name.endswith("scale"):
                tensor.uniform_(0.1, 0.5)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1)
            else:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
    return network
