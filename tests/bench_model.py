"""I3D's speed against one written as plainly as can be, in the same run: clips a second in a test and in training.

The plain one is `nn.Conv3d`, `nn.BatchNorm3d`, `nn.ReLU`, `nn.MaxPool3d`, in fp32, run as it stands, its tensors laid
out as torch lays them out. It holds the same weights, and gives the same logits.
"""

import copy
import gc
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import I3D, channels_last, fold_batch_norm, load_i3d, recompute_activations
from model.layers import ConvUnit, OffsetBatchNorm

FRAMES, SIDE, CLASSES = 64, 224, 400
GIGA_MACS = 111.2  # of a clip of 64 x 224²; with the backward pass three times as many
# Dense bf16 TFLOP/s that NVIDIA gives for its cards.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
ROUNDS = 3
SHARED = Path(os.environ.get("QUO_VADIS_SHARED", Path(__file__).parents[2] / "shared"))
WEIGHTS = SHARED / "weights/rgb_scratch/model.ckpt"

Variants = dict[str, Callable[[], Tensor]]
Case = tuple[int, int, int]  # clips, frames, pixels a side


class PlainUnit(nn.Sequential):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm3d(outputs, eps=OffsetBatchNorm.EPSILON, momentum=1e-3),
            nn.ReLU(),
        )


class PlainMixed(nn.Module):
    """An Inception module."""

    def __init__(self, inputs: int, c: tuple[int, ...]) -> None:
        super().__init__()
        self.branch_0 = PlainUnit(inputs, c[0], 1)
        self.branch_1 = nn.Sequential(PlainUnit(inputs, c[1], 1), PlainUnit(c[1], c[2], 3))
        self.branch_2 = nn.Sequential(PlainUnit(inputs, c[3], 1), PlainUnit(c[3], c[4], 3))
        self.branch_3 = nn.Sequential(nn.MaxPool3d(3, 1, padding=1), PlainUnit(inputs, c[5], 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)


class PlainI3D(nn.Module):
    """I3D of videos whose sizes 32 divides, for which SAME padding adds to the end of each axis alone."""

    def __init__(self, network: I3D) -> None:
        super().__init__()

        def mixed(*names: str) -> Iterator[PlainMixed]:
            for name in names:
                units = [m.conv for m in network.get_submodule(name).modules() if isinstance(m, ConvUnit)]
                yield PlainMixed(units[0].in_channels, tuple(unit.out_channels for unit in units))

        def pool(time: int, space: int, step: int) -> tuple[nn.Module, nn.Module]:
            after = (0, space - 2, 0, space - 2, 0, time - step)
            return nn.ConstantPad3d(after, 0.0), nn.MaxPool3d((time, space, space), (step, 2, 2))

        stem = PlainUnit(network.in_channels, 64, 7)
        stem[0].stride, stem[0].padding = (2, 2, 2), (0, 0, 0)
        self.layers = nn.Sequential(
            nn.ConstantPad3d((2, 3) * 3, 0.0),
            stem,
            *pool(1, 3, 1),
            PlainUnit(64, 64, 1),
            PlainUnit(64, 192, 3),
            *pool(1, 3, 1),
            *mixed("Mixed_3b", "Mixed_3c"),
            *pool(3, 3, 2),
            *mixed("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
            *pool(2, 2, 2),
            *mixed("Mixed_5b", "Mixed_5c"),
        )
        self.dropout = nn.Dropout(network.dropout.p)
        self.head = nn.Conv3d(1024, network.num_classes, 1)
        self._copy_weights(network)

    @torch.no_grad()
    def _copy_weights(self, network: I3D) -> None:
        plain = [unit for unit in self.modules() if isinstance(unit, PlainUnit)]
        theirs = [unit for unit in network.modules() if isinstance(unit, ConvUnit)]
        for (conv, norm, _), unit in zip(plain, theirs, strict=True):
            conv.weight.copy_(unit.conv.weight)
            for name, tensor in unit.norm.state_dict().items():
                norm.state_dict()[name].copy_(tensor)
        self.head.load_state_dict(network.Logits.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        x = F.avg_pool3d(x, (2, min(7, x.shape[3]), min(7, x.shape[4])), stride=1)
        logits: Tensor = self.head(self.dropout(x)).mean(dim=(2, 3, 4))
        return logits


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def inference(network: I3D, plain: PlainI3D, clips: Tensor, *, compiled: bool) -> Variants:
    """Logits of the same clips, each way; the compiled one in the shortest type that the processor has."""
    folded = fold_batch_norm(network)
    ours = clips.contiguous(memory_format=torch.channels_last_3d)
    variants = {"plain": _tested(plain.eval(), clips), "fp32": _tested(folded, ours)}
    dtype = torch.float32
    if has_bf16(clips.device):
        dtype = torch.bfloat16
        variants["bf16"] = _tested(folded, ours, dtype)
    if compiled:
        fast = torch.compile(folded, dynamic=False, options={"freezing": True})
        variants[f"{_name(dtype)} compiled"] = _tested(fast, ours, dtype)
    return variants


def training(network: I3D, plain: PlainI3D, clips: Tensor, *, compiled: bool) -> Variants:
    """The loss of a training step on the same clips, each way: forward, backward, SGD with momentum."""
    # As `i3d-train --precision auto` does it: not on CPUs, where torch's gradients are wrong.
    dtype = torch.bfloat16 if clips.device.type == "cuda" and has_bf16(clips.device) else torch.float32
    ours, recomputing = (channels_last(copy.deepcopy(network)) for _ in range(2))
    recompute_activations(recomputing)
    networks = {
        "plain": (plain, torch.float32),
        _name(dtype): (ours, dtype),
        f"{_name(dtype)} recomputed": (recomputing, dtype),
    }
    if compiled:
        fast = torch.compile(channels_last(copy.deepcopy(network)), dynamic=False)
        networks[f"{_name(dtype)} compiled"] = (fast, dtype)
    return {
        name: _trained(net.train(), clips if net is plain else clips.to(memory_format=torch.channels_last_3d), dtype)
        for name, (net, dtype) in networks.items()
    }


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _tested(network: nn.Module, clips: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad(), torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = network(clips)
        return logits.float()

    return run


def _trained(network: nn.Module, clips: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    labels = torch.arange(len(clips), device=clips.device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-9, momentum=0.9)  # the step's cost, not its effect

    def run() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(network(clips), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def measured(variants: Variants, device: torch.device) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each variant, which take turns, and what it computed; those that memory suffices for."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, Tensor] = {}
    for number in range(ROUNDS + 1):
        for name, run in variants.items():
            if number and name not in found:
                continue
            started = time.perf_counter()
            try:
                found[name] = run()
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first one prepares, and may compile
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items() if taken}, found


def bench_model() -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Two tables with their titles, of inference and of training.

    The weights are the released ones where they are, else random ones. What torch.compile makes of the network is
    measured too, on a CPU in one case of inference alone: it takes minutes there for each, and of a training step in
    fp32 it makes nothing faster.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = (load_i3d(WEIGHTS, "rgb") if WEIGHTS.with_suffix(".ckpt.index").is_file() else I3D()).to(device)
    network.dropout.p = 0.0
    tested: list[Case] = [(1, FRAMES, SIDE), (2, FRAMES, SIDE)]
    trained: list[Case] = [(2, 16, 128), (1, FRAMES, SIDE)]
    where = f"{torch.get_num_threads()} threads"
    compiled = {(inference, tested[0])} if shutil.which(os.environ.get("CXX", "g++")) else set()
    if device.type == "cuda":
        tested += [(batch, FRAMES, SIDE) for batch in (8, 32, 128)]
        trained = [(batch, FRAMES, SIDE) for batch in (2, 8, 24, 64, 128)]
        where = torch.cuda.get_device_name(device)
        compiled = {*((inference, case) for case in tested), *((training, case) for case in trained)}
    for title, make, cases, passes in (("inference", inference, tested, 1), ("a training step", training, trained, 3)):
        rows: list[tuple[str, ...]] = [("clips", "way", "clips/s", "ratio", "difference", "of the bf16 peak")]
        for case in cases:
            rows += _rows(network, make, case, passes, compiled=(make, case) in compiled)
            gc.collect()
        yield f"I3D, {title}, {where}: ratio to the plain one's clips/s", rows


def _rows(
    network: I3D, make: Callable[..., Variants], case: Case, passes: int, *, compiled: bool
) -> list[tuple[str, ...]]:
    """A row for each way; `passes` of the network are a step's work."""
    batch, frames, side = case
    device = next(network.parameters()).device
    torch.compiler.reset()
    clips = torch.rand(batch, network.in_channels, frames, side, side, device=device) * 2 - 1
    seconds, found = measured(make(network, PlainI3D(network).to(device), clips, compiled=compiled), device)
    rows = []
    for name, taken in seconds.items():
        ratio = f"{seconds['plain'] / taken:.2f}" if "plain" in seconds else "no memory for the plain one"
        apart = "-"
        if "plain" in found and name != "plain":
            apart = f"{((found[name] - found['plain']).norm() / found['plain'].norm()).item():.1e}"
        flops = 2e9 * GIGA_MACS * passes * batch * (frames * side**2) / (FRAMES * SIDE**2) / taken
        rows.append(
            (f"{batch} x {frames} x {side}²", name, f"{batch / taken:.2f}", ratio, apart, _share(flops, device))
        )
    return rows


def _share(flops: float, device: torch.device) -> str:
    """A rate as a share of what the card's maker promises, where that is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((peak for card, peak in PEAK_TFLOPS.items() if card in name), None)
    return f"{flops / 1e12 / peak:.0%}" if peak else "-"
