"""Loading weights: both ports, this project's own files, released names, and everything that must be refused."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import (
    I3D,
    STREAM_CHANNELS,
    CheckpointError,
    Stream,
    identify_released,
    list_variables,
    load_checkpoint,
    load_i3d,
    load_inception_v1,
    load_training,
    match_names,
    save_run,
)

StateDict = dict[str, Tensor]

CLASSES = ["archery", "bowling", "cooking egg", "diving cliff"]


def random_network(in_channels: int = 3, *, scaled: bool = False, **arguments: Any) -> I3D:
    """A network in evaluation mode with random weights; `scaled`: with torch's own batch normalisation, as ports have.

    A port's network is I3D with another normalisation, so I3D with that normalisation put in is the reference.
    """
    torch.manual_seed(in_channels)
    with torch.device("meta"):
        network = I3D(len(CLASSES), in_channels, **arguments)
        if scaled:
            for name, module in list(network.named_modules()):
                if name.endswith(".norm"):
                    network.set_submodule(name, nn.BatchNorm3d(module.bias.numel(), eps=1e-3))
    network.to_empty(device="cpu")
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.3, 0.6)
        elif name.endswith("norm.weight"):
            tensor.uniform_(-0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.1)
        else:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
    return network.eval()


def clip(in_channels: int = 3) -> Tensor:
    return torch.rand((1, in_channels, 17, 40, 33), generator=torch.Generator().manual_seed(0)) * 2 - 1


def piergiaj(state: StateDict) -> StateDict:
    branches = {
        "branch_0.Conv3d_0a_1x1": "b0",
        "branch_1.Conv3d_0a_1x1": "b1a",
        "branch_1.Conv3d_0b_3x3": "b1b",
        "branch_2.Conv3d_0a_1x1": "b2a",
        "branch_2.Conv3d_0b_3x3": "b2b",
        "branch_3.Conv3d_0b_1x1": "b3b",
        ".conv.": ".conv3d.",
        ".norm.": ".bn.",
        "Logits.": "logits.conv3d.",
    }
    return renamed(state, branches)


def hassony2(state: StateDict) -> StateDict:
    branches = {
        "branch_0.Conv3d_0a_1x1": "branch_0",
        "branch_1.Conv3d_0a_1x1": "branch_1.0",
        "branch_1.Conv3d_0b_3x3": "branch_1.1",
        "branch_2.Conv3d_0a_1x1": "branch_2.0",
        "branch_2.Conv3d_0b_3x3": "branch_2.1",
        "branch_3.Conv3d_0b_1x1": "branch_3.1",
        ".conv.": ".conv3d.",
        ".norm.": ".batch3d.",
        "Logits.": "conv3d_0c_1x1.conv3d.",
        "Mixed": "mixed",
        "Conv3d": "conv3d",
    }
    return renamed(state, branches)


def renamed(state: StateDict, replacements: dict[str, str]) -> StateDict:
    result = {}
    for name, tensor in state.items():
        for ours, theirs in replacements.items():
            name = name.replace(ours, theirs)
        result[name] = tensor
    return result


def untracked(state: StateDict) -> StateDict:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def ported() -> I3D:
    return random_network(scaled=True)


@pytest.fixture(scope="module")
def own() -> I3D:
    return random_network()


@pytest.fixture
def run_file(own: I3D, tmp_path: Path) -> Path:
    path = tmp_path / "run.pt"
    save_run(path, own, CLASSES)
    return path


# Ports


PORTS = [pytest.param(piergiaj, "piergiaj", id="piergiaj"), pytest.param(hassony2, "hassony2", id="hassony2")]


@pytest.mark.parametrize(
    ("port", "names"),
    [
        (
            piergiaj,
            [
                "Conv3d_1a_7x7.conv3d.weight",
                "Conv3d_2c_3x3.bn.running_var",
                "Mixed_3b.b0.conv3d.weight",
                "Mixed_5b.b2b.bn.num_batches_tracked",
                "Mixed_5c.b3b.bn.weight",
                "logits.conv3d.bias",
            ],
        ),
        (
            hassony2,
            [
                "conv3d_1a_7x7.conv3d.weight",
                "conv3d_2c_3x3.batch3d.running_var",
                "mixed_3b.branch_0.conv3d.weight",
                "mixed_5b.branch_2.1.batch3d.num_batches_tracked",
                "mixed_5c.branch_3.1.batch3d.weight",
                "conv3d_0c_1x1.conv3d.bias",
            ],
        ),
    ],
)
def test_the_ports_of_these_tests_have_the_ports_names(
    ported: I3D, port: Callable[[StateDict], StateDict], names: list[str]
) -> None:
    state = port(ported.state_dict())
    assert len(state) == 344
    assert set(names) <= state.keys()


@pytest.mark.parametrize(("port", "format"), PORTS)
def test_a_port_gives_equal_outputs(
    tmp_path: Path, ported: I3D, port: Callable[[StateDict], StateDict], format: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(port(ported.state_dict()), path)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.format, checkpoint.architecture, checkpoint.streams) == (format, "i3d", ("rgb",))
    assert checkpoint.num_classes == len(CLASSES)
    assert checkpoint.classes is None
    network = load_i3d(path, "rgb")
    assert not network.training
    assert not any(name.endswith("norm.weight") for name in network.state_dict())
    with torch.no_grad():
        expected = ported(clip())
        torch.testing.assert_close(network(clip()), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("port", "format"), PORTS)
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(untracked, id="older than torch 0.4"),
        pytest.param(lambda state: {"epoch": 3, "state_dict": state}, id="wrapped"),
        pytest.param(
            lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
            id="wrapped module",
        ),
        pytest.param(
            lambda state: {name: nn.Parameter(t) if t.ndim else t for name, t in state.items()}, id="parameters"
        ),
    ],
)
def test_the_forms_in_which_ports_are_saved(
    tmp_path: Path,
    ported: I3D,
    port: Callable[[StateDict], StateDict],
    format: str,
    wrap: Callable[[StateDict], object],
) -> None:
    plain, wrapped = tmp_path / "plain.pt", tmp_path / "wrapped.pt"
    torch.save(port(ported.state_dict()), plain)
    torch.save(wrap(port(ported.state_dict())), wrapped)
    expected, checkpoint = load_checkpoint(plain), load_checkpoint(wrapped)
    assert checkpoint.format == format
    assert checkpoint.state_dict.keys() == expected.state_dict.keys()
    for name, tensor in checkpoint.state_dict.items():
        assert torch.equal(tensor, expected.state_dict[name]), name


def test_half_precision_is_widened(tmp_path: Path, ported: I3D) -> None:
    path = tmp_path / "half.pt"
    state = piergiaj(ported.state_dict())
    torch.save({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path)
    assert {tensor.dtype for tensor in load_checkpoint(path).state_dict.values()} == {torch.float32}


# DeepMind's names


@pytest.mark.parametrize(
    ("folder", "stream", "classes", "variables"),
    [
        ("rgb_scratch", "rgb", 400, 230),
        ("rgb_imagenet", "rgb", 400, 230),
        ("flow_scratch", "flow", 400, 230),
        ("flow_imagenet", "flow", 400, 230),
        ("rgb_scratch_kin600", "rgb", 600, 346),
    ],
)
def test_released_names_map_with_nothing_left_over(
    shared: Path, folder: str, stream: Stream, classes: int, variables: int
) -> None:
    index = shared / "weights" / folder / "model.ckpt.index"
    assert identify_released(index) == (stream, classes)
    listed = list_variables(index)
    assert len(listed) == variables
    names = match_names(listed, "tensorflow")
    with torch.device("meta"):
        expected = I3D(classes, STREAM_CHANNELS[stream]).state_dict()
    assert sorted(names.values()) == sorted(expected)
    for theirs, ours in names.items():
        shape = listed[theirs][0]
        if len(expected[ours].shape) == 5:
            shape = (shape[4], shape[3], *shape[:3])
        assert [size for size in shape if size > 1] == [size for size in expected[ours].shape if size > 1], theirs


def test_the_released_rgb_network_is_refused_as_a_flow_network(shared: Path) -> None:
    prefix = shared / "weights" / "rgb_scratch" / "model.ckpt"
    with pytest.raises(CheckpointError, match="holds a network of rgb, one of flow was asked for"):
        load_i3d(prefix, "flow")


def test_a_released_checkpoint_without_its_data_says_so(shared: Path) -> None:
    with pytest.raises(CheckpointError, match="data-00000-of-00001: cannot be read"):
        load_checkpoint(shared / "weights" / "flow_imagenet" / "model.ckpt")


def test_names_that_no_network_has_are_counted_and_the_first_named() -> None:
    with pytest.raises(CheckpointError, match=r"230 missing: Conv3d_1a_7x7/conv_3d/w, Conv3d_1a_7x7/.*, …"):
        match_names(["resnet/conv1/w"], "tensorflow")


# This project's own files


@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize("padding", ["zero", "replicate"])
def test_a_runs_file_comes_back(tmp_path: Path, stream: Stream, padding: str) -> None:
    channels = STREAM_CHANNELS[stream]
    network = random_network(channels, temporal_padding=padding)
    path = tmp_path / "best.pt"
    save_run(path, network, CLASSES, crop=64, short_side=72, hold_out=0.2)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.crop, checkpoint.short_side, checkpoint.hold_out) == (64, 72, 0.2)
    assert (checkpoint.format, checkpoint.streams, checkpoint.num_classes) == ("run", (stream,), len(CLASSES))
    assert checkpoint.classes == tuple(CLASSES)
    assert checkpoint.temporal_padding == padding
    loaded = load_i3d(path, stream)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded(clip(channels)), network(clip(channels)))


def test_a_runs_file_is_what_was_agreed(run_file: Path, own: I3D) -> None:
    content = torch.load(run_file, weights_only=True)
    weights = content.pop("model")
    assert content == {
        "format": "quo-vadis-run",
        "format_version": 4,
        "architecture": "i3d",
        "streams": ["rgb"],
        "temporal_padding": "zero",
        "classes": CLASSES,
        "crop": None,
        "short_side": None,
        "hold_out": None,
    }
    assert weights.keys() == own.state_dict().keys()


def test_writing_leaves_one_file_and_the_same_bytes_each_time(tmp_path: Path, own: I3D, run_file: Path) -> None:
    first = load_checkpoint(run_file).sha256
    save_run(run_file, own, CLASSES)
    assert load_checkpoint(run_file).sha256 == first
    assert list(first) == ["run.pt"]
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, own: I3D, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_file.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_run(run_file, own, None)
    assert run_file.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:3], "3 classes, 3 of them different, for a network of 4"),
        ([*CLASSES[:3], "archery"], "4 classes, 3 of them different"),
    ],
)
def test_what_contradicts_the_network_is_not_written(
    tmp_path: Path, own: I3D, classes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_run(tmp_path / "run.pt", own, classes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "version 3; known are quo-vadis-run and quo-vadis-network, version 4"),
        ({"format": "other"}, "has format 'other'"),
        ({"architecture": "c4d"}, "architecture 'c4d', not one of"),
        ({"architecture": ["i3d"]}, "architecture of type list, not one of"),
        ({"architecture": "c3d"}, r"\d+ missing: conv1a.conv.weight, "),
        ({"streams": ["flow"]}, r"Conv3d_1a_7x7.conv.weight \[64, 3, 7, 7, 7\] instead of \[64, 2, 7, 7, 7\]"),
        ({"streams": ["rgb", "flow"]}, "a network that does not exist: i3d takes one stream"),
        ({"streams": ["depth"]}, "a network that does not exist: its streams are not rgb and flow"),
        ({"streams": "rgb"}, "a network that does not exist"),
        ({"temporal_padding": "reflect"}, "temporal padding 'reflect'"),
        ({"classes": CLASSES[:2]}, "names 2 classes, its network has 4"),
        ({"classes": [1, 2, 3, 4]}, "not a list of names"),
        ({"crop": 63}, "has the crop 63, not an even number of pixels from 32 to 1080"),
        ({"crop": 64.0}, "has the crop of type float"),
        ({"hold_out": "0.2"}, "has the hold_out '0.2', not a share between 0 and 1"),
        ({"hold_out": 1.0}, "has the hold_out 1.0, not a share"),
        ({"short_side": 10**9}, "has the short_side 1000000000, not an even number"),
        ({"crop": 224, "short_side": 64}, "has the crop 224, which is larger than its short_side 64"),
        ({"model": [1]}, "no state dict under 'model'"),
        ({"model": {}}, "230 missing: Conv3d_1a_7x7.conv.weight"),
        (
            {"architecture": "two-stream", "temporal_padding": "replicate"},
            "a network that does not exist: temporal_pad",
        ),
    ],
)
def test_a_contradictory_runs_file_is_refused(run_file: Path, change: dict[str, object], message: str) -> None:
    torch.save(torch.load(run_file, weights_only=True) | change, run_file)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(run_file)
    assert str(run_file) in str(caught.value)


# What does not fit


STEM = "Conv3d_1a_7x7.conv3d.weight"
OFFSET = "Mixed_3b.b0.bn.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(OFFSET), rf"1 missing: {OFFSET}"),
        (lambda s: [s.pop(n) for n in list(s) if ".b2b." in n], r"45 missing: Mixed_3b\.b2b\.conv3d\.weight, .*, …"),
        (lambda s: s.update({"fc.weight": torch.zeros(3)}), "1 left over: fc.weight"),
        (lambda s: s.update({"fc.num_batches_tracked": torch.zeros(())}), "1 left over: fc.num_batches_tracked"),
        (lambda s: s.update({OFFSET: torch.zeros(63)}), rf"1 of the wrong shape: {OFFSET} \[63\] instead of \[64\]"),
        (lambda s: s.update({OFFSET: torch.zeros(64, dtype=torch.long)}), f"floating point: {OFFSET}"),
        (lambda s: s.update({OFFSET: torch.zeros(64).to_sparse()}), f"no plain tensors of floating point: {OFFSET}"),
        (lambda s: s.update({OFFSET: torch.zeros(64, device="meta")}), f"no plain tensors .*: {OFFSET}"),
        (lambda s: s.update({OFFSET: "zeros"}), f"no plain tensors .*: {OFFSET}"),
        (
            lambda s: s.update({"logits.conv3d.weight": torch.zeros(1).expand(1 << 40, 1024, 1, 1, 1)}),
            "no plain tensors .*: logits.conv3d.weight",
        ),
        (
            lambda s: s.update({OFFSET: torch.full((64,), float("nan"))}),
            r"1 not finite: Mixed_3b\.branch_0\.Conv3d_0a_1x1\.norm\.bias",
        ),
        (lambda s: s.update({STEM: torch.zeros(64, 1, 7, 7, 7)}), "takes 1 channels, neither 3"),
        (lambda s: s.update({STEM: torch.zeros(64)}), r"the first convolution has the shape \[64\]"),
        (
            lambda s: s.update({OFFSET.replace("bias", "weight"): torch.zeros(63)}),
            r"bn.weight \[63\] instead of \[64\]",
        ),
        (lambda s: s.pop(STEM), r"no known naming of I3D's weights; the first names are \['Conv3d_1a_7x7\.bn"),
        (lambda s: s.clear(), "no known naming"),
        (lambda s: s.update({3: torch.zeros(1)}), "names are not all text"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, ported: I3D, change: Callable[[dict], object], message: str
) -> None:
    state = piergiaj(ported.state_dict())
    change(state)
    path = tmp_path / "port.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_the_other_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    save_run(path, random_network(2), None)
    with pytest.raises(CheckpointError, match="holds a network of flow, one of rgb was asked for"):
        load_i3d(path, "rgb")
    assert load_i3d(path).in_channels == 2
    with pytest.raises(ValueError, match=r"streams \('RGB',\) must be rgb, flow, or both"):
        load_i3d(path, "RGB")  # type: ignore[arg-type]


# Files that are no checkpoints


class Marks:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("read", [load_checkpoint, load_training, load_inception_v1])
@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_file_is_not_run(
    tmp_path: Path, save: Callable[[object, Path], object], read: Callable[[Path], object]
) -> None:
    path, mark = tmp_path / "hostile.pt", tmp_path / "executed"
    save({"state_dict": Marks(mark)}, path)
    with pytest.raises(CheckpointError, match=r"hostile\.pt: not a file of plain tensors"):
        read(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Marks(mark)))
    assert mark.exists()  # so the file would have done it


@pytest.mark.parametrize("form", ["compressed", "named twice"])
def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path: Path, form: str) -> None:
    torch.save({"Conv3d_1a_7x7.conv3d.weight": torch.zeros(100_000)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w") as archive:
        for entry in plain.infolist():
            compression = zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
            archive.writestr(entry.filename, plain.read(entry), compression)
        if form == "named twice":
            archive.filelist += [entry for entry in archive.filelist if entry.filename.endswith("data/0")] * 9
    assert torch.load(bomb, weights_only=True)
    with pytest.raises(CheckpointError, match=r"bomb\.pt: unpacks into \d+ bytes, the file has \d+"):
        load_checkpoint(bomb)


def test_a_damaged_file_is_refused(run_file: Path) -> None:
    content = run_file.read_bytes()
    for damaged in (b"", content[:1000], content[: len(content) // 2], content[:-10], b"GIF89a" + bytes(100)):
        run_file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a file of plain tensors"):
            load_checkpoint(run_file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(CheckpointError, match="not a file of plain tensors"):
        load_checkpoint(tmp_path / "other.zip")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor, not a state dict"):
        load_checkpoint(tmp_path / "tensor.pt")
    for missing in (tmp_path / "none.pt", tmp_path, tmp_path / "none.index"):
        with pytest.raises(CheckpointError, match="no such file"):
            load_checkpoint(missing)
