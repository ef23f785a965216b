"""I3D: counts, shapes, padding, padding's fixed point, training behaviour, and the released network's known outputs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import I3D, check_range, load_i3d

SIDE = 32  # the smallest picture that I3D takes

ENDPOINT_SHAPES = {
    "Conv3d_1a_7x7": (64, 32, 112, 112),
    "MaxPool3d_2a_3x3": (64, 32, 56, 56),
    "Conv3d_2b_1x1": (64, 32, 56, 56),
    "Conv3d_2c_3x3": (192, 32, 56, 56),
    "MaxPool3d_3a_3x3": (192, 32, 28, 28),
    "Mixed_3b": (256, 32, 28, 28),
    "Mixed_3c": (480, 32, 28, 28),
    "MaxPool3d_4a_3x3": (480, 16, 14, 14),
    "Mixed_4b": (512, 16, 14, 14),
    "Mixed_4c": (512, 16, 14, 14),
    "Mixed_4d": (512, 16, 14, 14),
    "Mixed_4e": (528, 16, 14, 14),
    "Mixed_4f": (832, 16, 14, 14),
    "MaxPool3d_5a_2x2": (832, 8, 7, 7),
    "Mixed_5b": (832, 8, 7, 7),
    "Mixed_5c": (1024, 8, 7, 7),
}


def meta_network(num_classes: int = 400, in_channels: int = 3) -> I3D:
    """A network without memory, for shapes only."""
    with torch.device("meta"):
        return I3D(num_classes, in_channels).eval()


def random_network(seed: int = 0, **arguments: object) -> I3D:
    """A network in evaluation mode whose statistics and offsets are not the initial zeros and ones."""
    torch.manual_seed(seed)
    with torch.device("meta"):  # its own initialisation takes a second, and is tested elsewhere
        network = I3D(num_classes=5, **arguments)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 0.6)  # so that activations neither die nor explode from layer to layer
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1)
            else:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
    return network.eval()


def video(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network() -> I3D:
    return random_network()


@pytest.fixture(scope="module")
def released(shared: Path) -> I3D:
    return load_i3d(shared / "weights" / "rgb_scratch" / "model.ckpt", "rgb")


# Counts and shapes


@pytest.mark.parametrize(("in_channels", "count"), [(3, 12_689_984), (2, 12_668_032)])
def test_parameter_count_is_that_of_the_released_network(in_channels: int, count: int) -> None:
    assert sum(p.numel() for p in meta_network(in_channels=in_channels).parameters()) == count


def test_endpoints_of_a_64_frame_clip() -> None:
    network = meta_network()
    clip = torch.empty(1, 3, 64, 224, 224, device="meta")
    assert tuple(ENDPOINT_SHAPES) == I3D.ENDPOINTS
    for name, shape in ENDPOINT_SHAPES.items():
        assert network.endpoint(clip, name).shape[1:] == shape, name
    assert network.logits_per_step(clip).shape == (1, 400, 7)
    assert network(clip).shape == (1, 400)


@pytest.mark.parametrize(("frames", "steps"), [(9, 1), (16, 1), (17, 2), (64, 7), (65, 8), (79, 9), (250, 31)])
def test_time_steps_of_odd_and_even_lengths(frames: int, steps: int) -> None:
    clip = torch.empty(1, 3, frames, SIDE, SIDE, device="meta")
    assert meta_network().logits_per_step(clip).shape == (1, 400, steps)


@pytest.mark.parametrize("side", [(32, 32), (112, 160), (256, 340)])
def test_other_picture_sizes_give_the_same_kind_of_logits(side: tuple[int, int]) -> None:
    assert meta_network(101, 2)(torch.empty(2, 2, 16, *side, device="meta")).shape == (2, 101)


def test_forward_is_the_mean_of_the_steps(network: I3D) -> None:
    clip = video(2, 3, 33, SIDE, SIDE)
    with torch.no_grad():
        steps = network.logits_per_step(clip)
        torch.testing.assert_close(network(clip), steps.sum(dim=2) / 4)
    assert steps.std(dim=2).min() > 0


# Padding. The reference gathers each window by explicit indices, from the other form of the rule in TensorFlow's
# documentation (with n mod s), and knows nothing of torch's padding.


def window_indices(size: int, kernel: int, stride: int, *, fixed: bool = False) -> np.ndarray:
    """[outputs, kernel] input positions of SAME windows; `size` and more, or less than 0, are padding.

    `fixed` is the fault of ports that computed the padding once, for sizes that the stride divides.
    """
    remainder = 0 if fixed else size % stride
    total = max(kernel - (remainder or stride), 0)
    outputs = (size + total - kernel) // stride + 1 if fixed else -(-size // stride)
    return np.arange(outputs)[:, None] * stride - total // 2 + np.arange(kernel)


def gather(x: Tensor, axis: int, positions: np.ndarray, fill: float | None) -> Tensor:
    """`x` at positions along an axis; outside it `fill`, or where that is None the nearest border."""
    size = x.shape[axis]
    inside = x.index_select(axis, torch.from_numpy(positions.clip(0, size - 1)))
    if fill is None:
        return inside
    shape = [1] * x.ndim
    shape[axis] = len(positions)
    outside = torch.from_numpy((positions < 0) | (positions >= size)).view(shape)
    return inside.masked_fill(outside, fill)


class Reference:
    """I3D written as plain loops over kernel positions, on a state dict."""

    def __init__(self, network: I3D, *, replicate: bool = False, fixed: bool = False) -> None:
        self.state = network.state_dict()
        self.replicate = replicate
        self.fixed = fixed

    def shifted(
        self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], fill: float, time_fill: float | None
    ) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
        """Each position in the kernel, and the part of `x` that the windows have there."""
        windows = [window_indices(*a, fixed=self.fixed) for a in zip(x.shape[2:], kernel, stride, strict=True)]
        for t in range(kernel[0]):
            in_time = gather(x, 2, windows[0][:, t], time_fill)
            for h in range(kernel[1]):
                in_height = gather(in_time, 3, windows[1][:, h], fill)
                for w in range(kernel[2]):
                    yield (t, h, w), gather(in_height, 4, windows[2][:, w], fill)

    def unit(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.conv.weight"]
        time_fill = None if self.replicate else 0.0
        y = torch.zeros(())
        for (t, h, w), part in self.shifted(x, tuple(weight.shape[2:]), (stride,) * 3, 0.0, time_fill):
            y = y + torch.einsum("oi,bithw->bothw", weight[:, :, t, h, w], part)
        mean, variance, offset = (
            self.state[f"{name}.norm.{part}"].view(1, -1, 1, 1, 1) for part in ("running_mean", "running_var", "bias")
        )
        return ((y - mean) / (variance + 1e-3).sqrt() + offset).clamp(min=0)

    def pool(self, x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        lowest = -float("inf")
        y = torch.tensor(lowest)
        for _, part in self.shifted(x, kernel, stride, lowest, lowest):
            y = torch.maximum(y, part)
        return y

    def mixed(self, x: Tensor, name: str) -> Tensor:
        branches = [
            self.unit(x, f"{name}.branch_0.Conv3d_0a_1x1"),
            self.unit(self.unit(x, f"{name}.branch_1.Conv3d_0a_1x1"), f"{name}.branch_1.Conv3d_0b_3x3"),
            self.unit(self.unit(x, f"{name}.branch_2.Conv3d_0a_1x1"), f"{name}.branch_2.Conv3d_0b_3x3"),
            self.unit(self.pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.branch_3.Conv3d_0b_1x1"),
        ]
        return torch.cat(branches, dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.pool(self.unit(x, "Conv3d_1a_7x7", stride=2), (1, 3, 3), (1, 2, 2))
        x = self.unit(self.unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        x = self.mixed(self.mixed(x, "Mixed_3b"), "Mixed_3c")
        x = self.pool(x, (3, 3, 3), (2, 2, 2))
        for letter in "bcdef":
            x = self.mixed(x, f"Mixed_4{letter}")
        x = self.pool(x, (2, 2, 2), (2, 2, 2))
        x = self.mixed(self.mixed(x, "Mixed_5b"), "Mixed_5c")
        assert x.shape[3] <= 7
        assert x.shape[4] <= 7
        pooled = x.mean(dim=(3, 4))
        pooled = (pooled[:, :, 1:] + pooled[:, :, :-1]) / 2
        weight, bias = self.state["Logits.weight"][:, :, 0, 0, 0], self.state["Logits.bias"]
        return torch.einsum("oc,bct->bot", weight, pooled) + bias.view(1, -1, 1)


# Odd and even in every place where a size is halved: 65 → 33 → 17 → 9, 47 → 24 → 12 → 6 → 3 → 2, 50 → 25 → 13 → 7 → 4.
@pytest.mark.parametrize(
    ("padding", "size"),
    [
        ("zero", (9, 32, 33)),
        ("zero", (16, 47, 32)),
        ("zero", (65, 33, 32)),
        ("replicate", (9, 47, 32)),
        ("replicate", (18, 50, 35)),
    ],
)
def test_padding_is_same_at_any_size(padding: str, size: tuple[int, int, int]) -> None:
    network = random_network(temporal_padding=padding).double()
    clip = video(1, 3, *size).double()
    with torch.no_grad():
        expected = Reference(network, replicate=padding == "replicate")(clip)
        torch.testing.assert_close(network.logits_per_step(clip), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("frames", "differs"), [(16, False), (65, True)])
def test_padding_computed_once_for_even_sizes_would_be_seen(frames: int, differs: bool) -> None:
    network = random_network().double()
    clip = video(1, 3, frames, SIDE, SIDE).double()
    with torch.no_grad():
        faulty = Reference(network, fixed=True)(clip).mean(dim=2)
        error = (network(clip) - faulty).abs().max().item()
    assert (error > 1e-3) if differs else (error < 1e-9)


# The boring video (section 3 of the paper)


def boring_features(network: I3D, frames: int) -> Tensor:
    picture = video(1, 3, 1, 64, 64)
    with torch.no_grad():
        return network.endpoint(picture.expand(-1, -1, frames, -1, -1), "Mixed_5c")


def test_a_constant_video_gives_the_same_features_at_any_length_under_replicate_padding() -> None:
    network = random_network(temporal_padding="replicate")
    expected = boring_features(network, 9)[:, :, :1]
    assert expected.abs().max() > 0.1
    for frames in (9, 10, 16, 33, 64):
        features = boring_features(network, frames)
        error = (features - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, frames


def test_zero_padding_has_no_such_fixed_point(network: I3D) -> None:
    short, long = (boring_features(network, frames).mean(dim=2) for frames in (16, 64))
    assert (short - long).norm() / long.norm() > 0.01


# Training and evaluation


def test_batch_normalisation_in_training_and_evaluation() -> None:
    network = random_network()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    clip = video(2, 3, 9, SIDE, SIDE)
    network.train()
    with torch.no_grad():
        trained = network.endpoint(clip, "Conv3d_1a_7x7")
    # The sizes 9 and 32 pad 3 + 3 and 2 + 3.
    y = F.conv3d(F.pad(clip, (2, 3, 2, 3, 3, 3)), state["Conv3d_1a_7x7.conv.weight"], stride=2)
    mean = y.mean(dim=(0, 2, 3, 4), keepdim=True)
    variance = y.var(dim=(0, 2, 3, 4), keepdim=True, unbiased=False)
    offset = state["Conv3d_1a_7x7.norm.bias"].view(1, -1, 1, 1, 1)
    expected = ((y - mean) / (variance + 1e-3).sqrt() + offset).clamp(min=0)
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-4)

    old, new = state["Conv3d_1a_7x7.norm.running_mean"], network.state_dict()["Conv3d_1a_7x7.norm.running_mean"]
    torch.testing.assert_close(new, 0.999 * old + 0.001 * mean.flatten(), rtol=1e-5, atol=1e-6)

    network.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        assert not torch.allclose(network.endpoint(clip, "Conv3d_1a_7x7"), trained, atol=1e-2)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_dropout_drops_with_its_probability_and_only_in_training() -> None:
    torch.manual_seed(0)
    network = I3D(num_classes=1024, dropout=0.2)
    with torch.no_grad():
        network.Logits.weight.copy_(torch.eye(1024).view(1024, 1024, 1, 1, 1))  # logits are the features themselves
        clip = video(4, 3, 9, SIDE, SIDE)
        network.train()
        dropped = network(clip)
        network.dropout.p = 0.0
        kept = network(clip)  # with the same batch statistics
        network.eval()
        assert torch.equal(network(clip), network(clip))
    alive = kept > 0
    share = (dropped[alive] == 0).float().mean().item()
    assert alive.sum() > 1000
    assert share == pytest.approx(0.2, abs=0.05)  # 0.8 if taken for the probability of keeping
    survived = alive & (dropped != 0)
    torch.testing.assert_close(dropped[survived], kept[survived] / 0.8)


def test_every_parameter_gets_a_finite_gradient() -> None:
    torch.manual_seed(0)
    network = I3D(num_classes=3, in_channels=2)
    F.cross_entropy(network(video(2, 2, 9, SIDE, SIDE)), torch.tensor([0, 2])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_initial_weights_are_a_truncated_normal_of_the_fan_in() -> None:
    torch.manual_seed(0)
    state = I3D().state_dict()
    for name in ("Conv3d_1a_7x7.conv.weight", "Mixed_4c.branch_1.Conv3d_0b_3x3.conv.weight", "Logits.weight"):
        weight = state[name]
        unit = weight * weight[0].numel() ** 0.5
        assert unit.abs().max() <= 2, name
        assert unit.std().item() == pytest.approx(0.8796, abs=0.02), name  # of a normal cut at two deviations
        assert unit.mean().abs() < 0.02, name
    assert not state["Logits.bias"].any()


# Faults in the input


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(3, 16, 32, 32), r"shape \[3, 16, 32, 32\], it must be \[B, 3, T, H, W\]"),
        (torch.zeros(1, 2, 16, 32, 32), "2 channels, this network takes 3"),
        (torch.zeros(1, 16, 32, 32, 3), "16 channels, this network takes 3"),
        (torch.zeros(1, 3, 16, 32, 32, dtype=torch.uint8), "uint8, it must be floats"),
        (torch.zeros(1, 3, 8, 32, 32), "8 frames, I3D needs at least 9"),
        (torch.zeros(1, 3, 16, 31, 32), "31x32 pixels, I3D needs at least 32"),
        (torch.zeros(1, 3, 16, 32, 31), "32x31 pixels, I3D needs at least 32"),
        (torch.full((1, 3, 16, 32, 32), 255.0), r"\[255, 255\], they must be scaled to \[-1, 1\]"),
        (torch.full((1, 3, 16, 32, 32), -1.02), "scaled"),
        (torch.full((1, 3, 16, 32, 32), float("nan")), "scaled"),
    ],
)
def test_a_wrong_input_is_refused_with_its_value(network: I3D, clip: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(clip)


def test_range_is_checked_where_asked_and_in_evaluation() -> None:
    clip = video(2, 3, 9, SIDE, SIDE) * 127.5 + 127.5
    with pytest.raises(ValueError, match="scaled"):
        check_range(clip)
    check_range(video(1, 3, 2, 4, 4))
    check_range(torch.tensor([-1.0, 1.0]))
    assert random_network().train()(clip).isfinite().all()  # a training step does not pay for the check


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes 0"),
        ({"in_channels": 0}, "in_channels 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"temporal_padding": "reflect"}, "temporal_padding 'reflect'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        I3D(**arguments)


def test_an_unknown_endpoint_is_refused(network: I3D) -> None:
    with pytest.raises(ValueError, match="'Mixed_6a'; there are Conv3d_1a_7x7"):
        network.endpoint(video(1, 3, 9, SIDE, SIDE), "Mixed_6a")


# Known outputs of DeepMind's checkpoint `rgb_scratch`, recorded when its variables were first read


@pytest.mark.parametrize(("frames", "norm", "top"), [(16, 31.79521, [5, 278, 130]), (64, 18.60484, [84, 40, 382])])
def test_released_network_on_a_ramp(released: I3D, frames: int, norm: float, top: list[int]) -> None:
    shape = (1, 3, frames, 224, 224)
    with torch.inference_mode():
        logits = released(torch.linspace(-1, 1, 3 * frames * 224 * 224).reshape(shape))[0]
    assert logits.norm().item() == pytest.approx(norm, abs=1e-3)
    assert logits.topk(3).indices.tolist() == top


def test_released_network_on_the_released_cricket_clip(released: I3D, shared: Path) -> None:
    """The published norm is 87.2180 and the logit 19.4886; the clip is here as a GIF, whose colours are coarser."""
    av = pytest.importorskip("av")
    with av.open(str(shared / "data" / "v_CricketShot_g04_c01_rgb.gif")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert clip.shape == (1, 3, 79, 224, 224)
    with torch.inference_mode():
        logits = released(clip)[0]
    labels = (shared / "data" / "kinetics400_labels.txt").read_text().splitlines()
    best = int(logits.argmax())
    assert labels[best] == "playing cricket"
    assert logits[best].item() == pytest.approx(17.64, abs=0.01)
    assert logits.norm().item() == pytest.approx(83.24, abs=0.01)
    assert logits.softmax(dim=0)[best].item() == pytest.approx(0.9886, abs=1e-4)
