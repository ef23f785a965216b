"""Inflation: module by module the released I3D, the boring video's fixed point, and pictures' weights in networks."""

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from model import I3D, ConvUnit, Inception, InceptionV1, MaxPool, begin_with_pictures, inflate, inflate_inception
from model.inflate import I3D_IN_TIME, stem_weight
from model.layers import OffsetBatchNorm


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics with which activations neither die nor explode, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 0.6, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0, generator=generator)
    return network.eval()


def picture(channels: int = 3, side: int = 40, seed: int = 1) -> Tensor:
    return torch.rand((2, channels, side, side), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def boring_video(still: Tensor, frames: int) -> Tensor:
    return still[:, :, None].expand(-1, -1, frames, -1, -1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def pictures() -> InceptionV1:
    with torch.device("meta"):  # its own initialisation takes a second
        network = InceptionV1(num_classes=7)
    network.to_empty(device="cpu")
    randomise(network)
    return network


class Standardised(nn.Conv2d):
    """Does more than its kind, as weight standardisation does."""


# The inflated network


def test_inception_inflates_to_the_released_i3d_module_by_module() -> None:
    with torch.device("meta"):
        inflated = inflate(Inception(3, 2), I3D_IN_TIME, "zero")
        released = I3D()
    found = {name.replace("2d_", "3d_"): module for name, module in inflated.named_modules() if name}
    expected = {name: module for name, module in released.named_modules() if name not in ("", "dropout", "Logits")}
    assert list(found) == list(expected)
    assert sum(isinstance(module, ConvUnit) for module in expected.values()) == 57
    assert sum(isinstance(module, MaxPool) for module in expected.values()) == 13
    for name, module in expected.items():
        assert type(found[name]) is type(module), name
        assert found[name].extra_repr() == module.extra_repr(), name  # of a convolution: all that defines it
        if isinstance(module, MaxPool):
            assert (found[name].kernel_size, found[name].stride) == (module.kernel_size, module.stride), name
        if isinstance(module, ConvUnit):
            assert found[name].temporal_padding == module.temporal_padding, name
        if isinstance(module, OffsetBatchNorm):
            assert found[name].momentum == module.momentum, name


def test_inflated_weights_are_the_pictures_divided_by_their_extent(pictures: InceptionV1) -> None:
    inflated = inflate_inception(pictures).state_dict()
    theirs = pictures.state_dict()
    assert len(inflated) == len(theirs)
    for name, tensor in inflated.items():
        if name.startswith("Logits"):
            expected = theirs[name.replace("Logits", "head")].view_as(tensor)
        else:
            expected = theirs["body." + name.replace("Conv3d_", "Conv2d_")]
        if name.endswith("conv.weight"):
            torch.testing.assert_close(tensor.sum(dim=2), expected, msg=name)
            assert (tensor == tensor[:, :, :1]).all(), name
            assert tensor.shape[2] == tensor.shape[3], name
        else:
            assert torch.equal(tensor, expected), name


def test_inflation_leaves_the_given_network_alone(pictures: InceptionV1) -> None:
    before = {name: tensor.clone() for name, tensor in pictures.state_dict().items()}
    for inflated in (inflate(pictures), inflate_inception(pictures)):
        with torch.no_grad():
            for tensor in inflated.state_dict().values():
                tensor.fill_(5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pictures.state_dict().items())
    assert not pictures.training


def test_an_inflated_network_is_in_the_mode_of_the_given_one_and_learns(pictures: InceptionV1) -> None:
    assert not any(module.training for module in inflate(pictures).modules())
    frozen = InceptionV1(num_classes=3).train().requires_grad_(False)
    network = inflate(frozen)
    assert all(module.training for module in network.modules())
    network(torch.rand(2, 3, 9, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# The boring video


def test_logits_of_a_boring_video_are_the_pictures_under_replicate_padding(pictures: InceptionV1) -> None:
    still = picture()
    video_network = inflate_inception(pictures, temporal_padding="replicate")
    with torch.no_grad():
        expected = pictures(still)
        assert expected.std() > 0.1
        for frames in (9, 10, 17):
            assert relative_error(video_network(boring_video(still, frames)), expected) < 1e-5, frames


def test_zero_padding_has_a_border_effect_that_falls_with_length(pictures: InceptionV1) -> None:
    still = picture(side=32)
    video_network = inflate_inception(pictures)
    with torch.no_grad():
        expected = pictures(still)
        errors = [relative_error(video_network(boring_video(still, frames)), expected) for frames in (9, 32, 96)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0.01


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_networks_of_torchvision_have_the_fixed_point(torchvision_models: ModuleType, name: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = randomise(getattr(torchvision_models, name)(weights=None, num_classes=5, **options))
    first_pool = {"maxpool": (1, 1)} if name == "resnet18" else {}
    inflated = inflate(network, first_pool)
    assert not [layer for layer in inflated.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d))]
    still = picture(side=40)
    with torch.no_grad():
        expected = network(still)
        assert expected.std() > 1e-3
        for frames in (16, 19):
            assert relative_error(inflated(boring_video(still, frames)), expected) < 1e-5, frames
        bordered = inflate(network, first_pool, "zero")
        assert relative_error(bordered(boring_video(still, 16)), expected) > 0.01


def test_layers_of_all_kinds_have_the_fixed_point() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, (5, 3), (2, 1), padding=(4, 1), dilation=(2, 1), groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.MaxPool2d(3, 2, padding=1, dilation=2, ceil_mode=True),
        nn.Dropout2d(),
        nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AdaptiveAvgPool2d((2, None)),
    )
    network = randomise(network).double()
    inflated = inflate(network, {"3": (1, 1), "4": (2, 1)})
    assert inflated[0].kernel_size == (5, 5, 3)
    assert inflated[0].stride == (2, 2, 1)
    assert inflated[0].dilation == (2, 2, 1)
    assert inflated[3].kernel_size == (1, 3, 3)
    assert inflated[3].padding == (0, 0, 0)
    assert (inflated[4].kernel_size, inflated[4].stride) == ((2, 3, 3), (1, 2, 2))
    still = picture(4, 40).double()
    with torch.no_grad():
        expected = network(still)
        found = inflated(boring_video(still, 9))
        torch.testing.assert_close(found, expected[:, :, None], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "in_time", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding="same"), {}, "layer: padding 'same' of zeros"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), {}, r"layer: padding \(1, 1\) of reflect"),
        (nn.AvgPool2d(3, padding=1), {}, "layer: an average pool that counts zeros"),
        (nn.Upsample(2), {"layer": (1, 1)}, "in_time names 'layer', which is no convolution"),
        (nn.Conv2d(1, 1, 3), {"layre": (1, 1)}, "in_time names 'layre', which is no convolution"),
        (nn.Conv2d(1, 1, 3), {"layer": (0, 1)}, r"layer the extent and stride \(0, 1\), both must be at least 1"),
        (nn.InstanceNorm2d(1), {}, "layer: a layer of type InstanceNorm2d has no inflated form"),
        (Standardised(1, 1, 3), {}, "layer: a layer of type Standardised has no inflated form"),
        (nn.Conv3d(1, 1, 3), {}, "layer is of videos already"),
        (ConvUnit(1, 1, (3, 3, 3)), {}, "layer.conv is of videos already"),
    ],
)
def test_what_cannot_be_inflated_is_named(layer: nn.Module, in_time: dict, message: str) -> None:
    network = nn.Sequential()
    network.add_module("layer", layer)
    with pytest.raises(ValueError, match=message):
        inflate(network, in_time)


# Pictures' weights in networks of videos


@pytest.mark.parametrize("channels", [2, 20])
def test_a_grey_picture_in_all_channels_of_flow_gives_the_response_that_it_has_in_rgb(channels: int) -> None:
    weight = torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    grey = picture(1)
    of_flow = stem_weight(weight, channels)
    assert of_flow.shape == (64, channels, 7, 7)
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    found = nn.functional.conv2d(grey.expand(-1, channels, -1, -1), of_flow)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (of_flow == of_flow[:, :1]).all()


def test_rgb_weights_of_a_stem_stay_and_others_begin_nothing() -> None:
    weight = torch.randn(4, 3, 7, 7)
    assert stem_weight(weight, 3) is weight
    with pytest.raises(ValueError, match="of 20 channels, only one of RGB"):
        stem_weight(torch.randn(4, 20, 7, 7), 2)


def test_an_inflated_flow_network_sees_a_grey_boring_video_as_the_pictures_do(pictures: InceptionV1) -> None:
    grey = picture(1)
    with torch.no_grad():
        expected = pictures(grey.expand(-1, 3, -1, -1))
        network = inflate_inception(pictures, 2, "replicate")
        assert relative_error(network(boring_video(grey.expand(-1, 2, -1, -1), 9)), expected) < 1e-5


def test_every_inception_in_a_network_begins_with_the_pictures(pictures: InceptionV1) -> None:
    network = nn.ModuleDict({"rgb": Inception(3, 2), "flow": InceptionV1(7, 20), "video": Inception(3, 3)})
    head = network["flow"].head.weight.clone()
    begin_with_pictures(network, pictures)
    state, theirs = network.state_dict(), pictures.state_dict()
    for name in pictures.body.state_dict():
        assert torch.equal(state[f"rgb.{name}"], theirs[f"body.{name}"]), name
        if name != "Conv2d_1a_7x7.conv.weight":
            assert torch.equal(state[f"flow.body.{name}"], theirs[f"body.{name}"]), name
    stem = theirs["body.Conv2d_1a_7x7.conv.weight"]
    torch.testing.assert_close(state["flow.body.Conv2d_1a_7x7.conv.weight"].sum(1), stem.sum(1))
    torch.testing.assert_close(state["video.Conv3d_1a_7x7.conv.weight"].sum(2), stem)
    assert torch.equal(network["flow"].head.weight, head)


def test_a_network_without_inception_is_refused(pictures: InceptionV1) -> None:
    with pytest.raises(ValueError, match="a Linear has no Inception-v1"):
        begin_with_pictures(nn.Linear(3, 3), pictures)
