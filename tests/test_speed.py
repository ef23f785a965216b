"""What makes networks faster or smaller changes nothing else: folding, recomputing, compiling, bf16, split pools."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import (
    C3D,
    I3D,
    ConvNetLSTM,
    Fused,
    OffsetBatchNorm,
    TwoStream,
    fold_batch_norm,
    load_i3d,
    recompute_activations,
)
from model.layers import MaxPool
from tests.bench_model import PlainI3D
from tests.test_i3d import SIDE, random_network, video


def random_statistics(network: nn.Module) -> None:
    """Statistics and offsets that are not the initial zeros and ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 0.6)
            elif name.endswith(("running_mean", "norm.bias")):
                tensor.normal_(0, 0.1)


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        (lambda: I3D(5), [(1, 3, 9, 32, 32)]),
        (lambda: ConvNetLSTM(5), [(1, 3, 3, 32, 32)]),
        (lambda: TwoStream(5), [(1, 3, 1, 32, 32), (1, 2, 10, 32, 32)]),
        (lambda: Fused(5, ("flow",)), [(1, 2, 50, 32, 32)]),
    ],
)
def test_folding_changes_no_output_and_not_the_network(
    network: Callable[[], nn.Module], shapes: list[tuple[int, ...]]
) -> None:
    original = network().double().eval()
    random_statistics(original)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    inputs = [video(*shape).double() for shape in shapes]
    folded = fold_batch_norm(original)
    assert not any(isinstance(module, OffsetBatchNorm) for module in folded.modules())
    with torch.no_grad():
        wanted = original(*inputs)
        torch.testing.assert_close(folded(*inputs), wanted, rtol=1e-10, atol=1e-10)
    assert wanted.std() > 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


@pytest.mark.parametrize("size", [(4, 6, 6), (5, 7, 6), (1, 1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2))])
def test_a_pool_in_two_parts_has_the_gradient_of_one(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    x = video(2, 3, *size).double().requires_grad_()
    ends = []
    for n, k, s in zip(reversed(size), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        ends += [total // 2, total - total // 2]
    wanted = F.max_pool3d(F.pad(x, ends, value=-float("inf")), kernel, stride)
    found = MaxPool(kernel, stride)(x)
    weights = torch.rand(wanted.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (wanted, found)]
    assert torch.equal(found, wanted)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_channels_stay_last_in_memory() -> None:
    """Wherever one layer forgot it, those behind it would run on another layout, and slowly."""
    network = random_network()
    for name in I3D.ENDPOINTS:
        y = network.endpoint(video(1, 3, 16, 64, 64), name)
        # Strides, since a tensor of one step or of one pixel is of any layout.
        channels, _, height, width = y.shape[1:]
        assert y.stride()[1:] == (1, height * width * channels, width * channels, channels), name


def saved_and_trained(network: nn.Module, x: Tensor) -> tuple[int, dict[str, Tensor]]:
    """Bytes that a forward pass keeps for the backward pass; loss, gradients and state afterwards."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.manual_seed(0)  # of dropout
        loss = F.cross_entropy(network(x), torch.tensor([0, 2]))
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
    return sum(kept.values()), {"loss": loss.detach(), **gradients, **network.state_dict()}


def test_recomputed_activations_train_alike_in_less_memory() -> None:
    network = random_network().train()
    recomputing = copy.deepcopy(network)
    recompute_activations(recomputing)
    x = video(2, 3, 16, 64, 64)
    (plain_bytes, wanted), (fewer_bytes, found) = saved_and_trained(network, x), saved_and_trained(recomputing, x)
    assert fewer_bytes < plain_bytes / 4
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_a_network_without_inception_cannot_recompute() -> None:
    with torch.device("meta"):
        network = C3D(5)
    with pytest.raises(ValueError, match="C3D cannot be computed anew"):
        recompute_activations(network)


@pytest.mark.slow
def test_a_compiled_network_trains_alike() -> None:
    """Traced whole, by the compiler's first half: no part of it falls back to Python."""
    network = random_network().train()
    x = video(2, 3, 9, SIDE, SIDE)
    for recomputes in (False, True):
        plain = copy.deepcopy(network)
        compiled = copy.deepcopy(network)
        if recomputes:
            recompute_activations(compiled)
        _, wanted = saved_and_trained(plain, x)
        torch.compiler.reset()
        torch.manual_seed(0)
        F.cross_entropy(
            torch.compile(compiled, backend="aot_eager", fullgraph=True)(x), torch.tensor([0, 2])
        ).backward()
        for name, parameter in compiled.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[f"gradient of {name}"], rtol=1e-4, atol=1e-6)
        for name, tensor in compiled.state_dict().items():
            torch.testing.assert_close(tensor, wanted[name])


def test_the_plain_network_of_the_bench_is_the_same_network() -> None:
    network = random_network().double()
    plain = PlainI3D(network).double()
    x = video(2, 3, 16, 64, 64).double()
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), network(x), rtol=1e-9, atol=1e-9)
        network.train().dropout.p = plain.dropout.p = 0.0
        torch.testing.assert_close(plain.train()(x), network(x), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_bf16_keeps_what_the_released_network_sees(shared: Path) -> None:
    """Of the released clip the best eight in order, and the logits up to 2 % of their norm: 0.15 where one is 17.6."""
    av = pytest.importorskip("av")
    with av.open(str(shared / "data" / "v_CricketShot_g04_c01_rgb.gif")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    network = load_i3d(shared / "weights" / "rgb_scratch" / "model.ckpt", "rgb")
    folded = fold_batch_norm(network)
    with torch.inference_mode():
        wanted, in_fp32 = network(x)[0], folded(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            in_bf16 = folded(x)[0].float()
    assert (in_fp32 - wanted).abs().max() < 1e-4
    assert (in_bf16 - wanted).norm() < 0.02 * wanted.norm()
    assert in_bf16.topk(5).indices.tolist() == wanted.topk(5).indices.tolist()


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="a CPU without bf16 units")
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="torch's bf16 on CPUs: i3d-train refuses it; where this passes it need not",
)
def test_gradients_of_weights_in_bf16_on_a_cpu(request: pytest.FixtureRequest) -> None:
    """Of a 3D-ConvNet's third convolution, wrong with AMX, and of a short window's last ones, wrong without."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with several, AMX's are right now and then
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    for channels, outputs, *sizes in ((128, 256, 4, 28, 28), (160, 320, 2, 4, 4)):
        x, weight = torch.randn(2, channels, *sizes), torch.randn(outputs, channels, 3, 3, 3)
        y = torch.randn(2, outputs, *sizes)
        gradients = []
        for dtype in (torch.float32, torch.bfloat16):
            given, taken, out = (z.to(dtype).contiguous(memory_format=torch.channels_last_3d) for z in (x, weight, y))
            F.conv3d(given, taken.requires_grad_(), padding=1).backward(out)
            assert taken.grad is not None
            gradients.append(taken.grad.float())
        wanted, found = gradients
        assert (found - wanted).norm() < 0.01 * wanted.norm()
