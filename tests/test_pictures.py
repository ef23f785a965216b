"""Inception-v1 of pictures: torchvision's googlenet and our own state dict, and networks of videos begun with it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model import CheckpointError, Inception, InceptionV1, begin_with_pictures, load_checkpoint, load_inception_v1

STEM = "conv1.conv.weight"


@pytest.fixture(scope="module")
def googlenet(torchvision_models: ModuleType) -> nn.Module:
    """With its auxiliary classifiers, as published, and statistics and scales that are not the initial ones."""
    network = torchvision_models.googlenet(weights=None, num_classes=7, aux_logits=True, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 0.6, generator=generator)
            elif name.endswith("bn.weight"):
                tensor.uniform_(-0.5, 1.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim and not name.startswith("aux"):
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return network.eval()


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def shifted(network: nn.Module, x: Tensor) -> Tensor:
    """Googlenet's logits with its stem padded as ours is, 2 pixels before and 3 after."""
    conv = network.get_submodule("conv1.conv")
    padding, conv.padding = conv.padding, (0, 0)
    try:
        logits: Tensor = network(nn.functional.pad(x, (2, 3, 2, 3)))
    finally:
        conv.padding = padding
    return logits


@pytest.mark.parametrize("form", ["bare", "wrapped", "safetensors"])
def test_googlenet_gives_its_logits_but_for_the_stems_padding(tmp_path: Path, googlenet: nn.Module, form: str) -> None:
    path = tmp_path / "googlenet.pth"
    state = googlenet.state_dict()
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}} if form == "wrapped" else state, path)
    network = load_inception_v1(path)
    assert (network.num_classes, network.in_channels, network.training) == (7, 3, False)
    assert not any(name.endswith("norm.weight") for name in network.state_dict())
    x = pictures(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = network(x), shifted(googlenet, x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        assert (found - googlenet(x)).abs().max() > 1e-3  # the difference that is said


def test_odd_sides_leave_the_stem_as_torchvisions(tmp_path: Path, googlenet: nn.Module) -> None:
    torch.save(googlenet.state_dict(), tmp_path / "googlenet.pth")
    body = load_inception_v1(tmp_path / "googlenet.pth").body
    x = pictures(1, 3, 65, 33)
    with torch.no_grad():
        found, expected = body.get_submodule("Conv2d_1a_7x7")(x), googlenet.get_submodule("conv1")(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_our_own_state_dict_comes_back(tmp_path: Path, suffix: str) -> None:
    with torch.device("meta"):  # its own initialisation takes seconds
        network = InceptionV1(num_classes=5, in_channels=20)
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.uniform_(0.1, 0.9)
    path = tmp_path / f"inception{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    loaded = load_inception_v1(path)
    assert (loaded.num_classes, loaded.in_channels) == (5, 20)
    weights = loaded.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    with pytest.raises(CheckpointError, match="an Inception-v1 of pictures; `i3d-convert --model`"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="of 20 channels, only one of RGB"):
        begin_with_pictures(Inception(3, 2), loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("inception4e.branch3.1.bn.bias"), r"1 missing: inception4e\.branch3\.1\.bn\.bias"),
        (lambda s: s.update({"inception6a.w": torch.zeros(1)}), r"1 left over: inception6a\.w"),
        (lambda s: s.update({"fc.bias": torch.zeros(8)}), r"1 of the wrong shape: fc\.bias \[8\] instead of \[7\]"),
        (lambda s: s.update({"conv2.bn.weight": torch.zeros(3)}), r"conv2\.bn\.weight \[3\] instead of \[64\]"),
        (lambda s: s.update({STEM: torch.zeros(64, 3, 7, 7, 7)}), r"convolution has the shape \[64, 3, 7, 7, 7\]"),
        (lambda s: s.update({"fc.weight": torch.zeros(())}), r"the last layer \[\]"),
        (lambda s: s.update({"fc.bias": torch.full((7,), torch.nan)}), r"1 not finite: head\.bias"),
        (lambda s: s.update({"fc.bias": [0.0] * 7}), r"no plain tensors of floating point: fc\.bias"),
        (lambda s: s.pop(STEM), r"no known naming of an Inception-v1; the first names are \['conv1\.bn"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, googlenet: nn.Module, change: Callable[[dict], object], message: str
) -> None:
    state = dict(googlenet.state_dict())
    change(state)
    path = tmp_path / "googlenet.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_inception_v1(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: there is no such file"):
        load_inception_v1(tmp_path / "none.pth")
