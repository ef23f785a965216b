"""`i3d-convert` and safetensors: round trips of every architecture, new heads, and headers that lie."""

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor

from model import (
    Architecture,
    CheckpointError,
    InceptionV1,
    Network,
    Stream,
    build,
    head_names,
    load_checkpoint,
    load_i3d,
    save_run,
    save_safetensors,
)
from train.convert import convert_command
from train.evaluate import classes_of, load_streams

CLASSES = ["archery", "bowling", "cooking egg"]
BOTH: tuple[Stream, ...] = ("rgb", "flow")

NETWORKS = [
    pytest.param("i3d", ("flow",), id="i3d flow"),
    pytest.param("lstm", ("rgb",), id="lstm"),
    pytest.param("two-stream", ("flow",), id="two-stream flow"),
    pytest.param("two-stream", BOTH, id="two-stream", marks=pytest.mark.slow),
    pytest.param("fused", BOTH, id="fused", marks=pytest.mark.slow),
    pytest.param("c3d", ("rgb",), id="c3d", marks=pytest.mark.slow),  # 79 million weights
]


def network(architecture: Architecture, streams: Sequence[Stream], **arguments: Any) -> Network:
    """Random numbers for weights, without the time that their proper initialisation takes."""
    with torch.device("meta"):
        made = build(architecture, streams, len(CLASSES), **arguments)
    made.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in made.state_dict().values():
        tensor.uniform_(0.1, 0.9, generator=generator)
    return made.eval()


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(convert_command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def i3d() -> Network:
    return network("i3d", ("rgb",))


@pytest.fixture(scope="module")
def i3d_file(i3d: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "i3d.safetensors"
    save_safetensors(path, i3d, CLASSES)
    return path


def test_the_checkpoint_is_not_replaced_and_folders_are_made(i3d_file: Path, tmp_path: Path) -> None:
    before = i3d_file.read_bytes()
    result = convert(i3d_file, i3d_file, "--classes", 7)
    assert result.exit_code == 1
    assert "that is a file of IN, which would be lost" in result.output
    assert i3d_file.read_bytes() == before
    made = tmp_path / "new" / "folder" / "i3d.safetensors"
    assert convert(i3d_file, made).exit_code == 0
    assert load_checkpoint(made).num_classes == len(CLASSES)


# Round trips


@pytest.mark.parametrize(("architecture", "streams"), NETWORKS)
def test_every_network_comes_back_from_both_kinds_of_files(
    tmp_path: Path, architecture: Architecture, streams: tuple[Stream, ...]
) -> None:
    saved = network(architecture, streams)
    save_run(tmp_path / "run.pt", saved, CLASSES)
    assert convert(tmp_path / "run.pt", tmp_path / "run.safetensors").exit_code == 0
    for name, format in {"run.pt": "run", "run.safetensors": "safetensors"}.items():
        checkpoint = load_checkpoint(tmp_path / name, streams)
        assert (checkpoint.format, checkpoint.architecture, checkpoint.streams) == (format, architecture, streams)
        assert (checkpoint.num_classes, checkpoint.classes) == (len(CLASSES), tuple(CLASSES))
        loaded = checkpoint.network()
        assert type(loaded) is type(saved)
        assert not loaded.training
        weights = loaded.state_dict()
        assert weights.keys() == saved.state_dict().keys()
        for weight, tensor in saved.state_dict().items():
            assert torch.equal(weights[weight], tensor), weight


@pytest.mark.parametrize(("architecture", "streams"), NETWORKS)
def test_a_new_head_replaces_the_last_layers_and_nothing_else(
    architecture: Architecture, streams: tuple[Stream, ...], tmp_path: Path
) -> None:
    save_run(tmp_path / "run.pt", network(architecture, streams), CLASSES)
    assert convert(tmp_path / "run.pt", tmp_path / "new.safetensors", "--classes", 11).exit_code == 0
    old, new = load_checkpoint(tmp_path / "run.pt"), load_checkpoint(tmp_path / "new.safetensors")
    assert (new.num_classes, new.classes) == (11, None)
    heads = head_names(architecture, streams)
    assert len(heads) == (2 * len(streams) if architecture == "two-stream" else 2)
    for name, tensor in new.state_dict.items():
        if name not in heads:
            assert torch.equal(tensor, old.state_dict[name]), name
        elif name.endswith("bias"):
            assert tensor.tolist() == [0] * 11
        else:
            assert len(tensor) == 11
            unit = tensor * tensor[0].numel() ** 0.5
            assert unit.abs().max() <= 2
            assert unit.std().item() == pytest.approx(0.88, abs=0.05)
    assert new.network().num_classes == 11


def test_temporal_padding_is_kept(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", network("i3d", ("rgb",), temporal_padding="replicate"), None)
    checkpoint = load_checkpoint(tmp_path / "a.safetensors").with_new_head(2)
    assert checkpoint.temporal_padding == "replicate"
    assert checkpoint.network().temporal_padding == "replicate"


def test_equal_networks_give_equal_bytes(tmp_path: Path, i3d: Network, i3d_file: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        assert convert(i3d_file, tmp_path / name, "--classes", 5).exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    save_safetensors(tmp_path / "c.safetensors", i3d, CLASSES)
    assert (tmp_path / "c.safetensors").read_bytes() == i3d_file.read_bytes()


def test_what_is_loaded_does_not_change_with_the_file(tmp_path: Path, i3d: Network) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(path, i3d, None)
    loaded = load_checkpoint(path).state_dict
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(1_000_000))
    for name, tensor in i3d.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_the_released_network_is_the_same_as_safetensors(tmp_path: Path, shared: Path) -> None:
    prefix = shared / "weights" / "rgb_scratch" / "model.ckpt"
    result = convert(prefix, tmp_path / "rgb.safetensors")
    assert result.output == f"{tmp_path / 'rgb.safetensors'}: i3d of rgb, 400 classes\n"
    released, converted = load_checkpoint(prefix), load_checkpoint(tmp_path / "rgb.safetensors", ("rgb",))
    assert converted.state_dict.keys() == released.state_dict.keys()
    for name, tensor in released.state_dict.items():
        assert torch.equal(converted.state_dict[name], tensor), name


@pytest.mark.parametrize(
    ("model", "stream"),
    [
        ("i3d", "flow"),
        pytest.param("lstm", "rgb", marks=pytest.mark.slow),
        pytest.param("two-stream", "both", marks=pytest.mark.slow),
        pytest.param("fused", "both", marks=pytest.mark.slow),
    ],
)
def test_networks_of_videos_begin_with_pictures(tmp_path: Path, model: str, stream: str) -> None:
    with torch.device("meta"):
        pictures = InceptionV1(num_classes=9)
    pictures.to_empty(device="cpu")
    for tensor in pictures.state_dict().values():
        tensor.uniform_(0.1, 0.9)
    torch.save(pictures.state_dict(), tmp_path / "pictures.pt")
    result = convert(
        tmp_path / "pictures.pt", tmp_path / "a.safetensors", "--model", model, "--stream", stream, "--classes", 4
    )
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    assert (checkpoint.architecture, checkpoint.num_classes) == (model, 4)
    assert checkpoint.streams == (BOTH if stream == "both" else (stream,))
    name = "Mixed_4c.branch_2.{0}_0b_3x3.norm.running_mean"
    prefixes = {"i3d": [""], "lstm": ["body."], "two-stream": ["rgb.body.", "flow.body."], "fused": ["rgb.", "flow."]}
    for prefix in prefixes[model]:
        found = checkpoint.state_dict[prefix + name.format("Conv3d" if model == "i3d" else "Conv2d")]
        assert torch.equal(found, pictures.body.state_dict()[name.format("Conv2d")])


# What the command refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{file}", "out.pt"), "out.pt: the output's name must end in .safetensors"),
        (("none.ckpt", "out.safetensors"), "none.ckpt: there is no such file"),
        (("{file}", "{file}/out.safetensors"), "File exists"),
        (("{file}", "out.safetensors", "--model", "i3d"), "--model, --stream and --classes belong together"),
        (("{file}", "out.safetensors", "--stream", "rgb"), "--model, --stream and --classes belong together"),
        (("{file}", "out.safetensors", "--classes", "0"), "0 is not in the range"),
        (("{file}", "out.safetensors", "--model", "c3d"), "'c3d' is not one of"),
        (
            ("{file}", "out.safetensors", "--model", "i3d", "--stream", "rgb", "--classes", "2"),
            "no known naming of an Inception-v1",
        ),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, i3d_file: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = convert(*(argument.format(file=i3d_file) for argument in arguments))
    assert result.exit_code != 0
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_class_names_go_along_where_a_file_or_its_format_has_them(tmp_path: Path) -> None:
    """DeepMind's files name none and are of Kinetics; a new head has no names."""
    network = build("i3d", ("rgb",), 400)
    save_safetensors(tmp_path / "unnamed.safetensors", network, None)
    assert classes_of(load_checkpoint(tmp_path / "unnamed.safetensors")) is None
    streams = load_streams({"rgb": tmp_path / "unnamed.safetensors"})
    assert streams.classes.labels[:2] == ("class 0", "class 1")


def test_values_that_lie_are_refused_in_few_words(tmp_path: Path) -> None:
    """A nested list of 1.5 kB would have been shown in gigabytes, and classes without data counted on."""
    nested: list = []
    for _ in range(12):
        nested = [nested] * 10
    save_run(tmp_path / "run.pt", build("i3d", ("rgb",), 3), None)
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    huge = {**content["model"], "Logits.weight": torch.empty(2**62, 0, 1, 1, 1)}
    lies = [{name: nested} for name in ("format", "architecture", "streams", "temporal_padding")]
    for lie in (*lies, {"format_version": torch.ones(2)}, {"model": huge}):
        torch.save(content | lie, tmp_path / "lie.pt")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "lie.pt")
        assert len(str(caught.value)) < 500


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    torch.save({"\x1b[2Jname": torch.zeros(1)}, tmp_path / "a.pt")
    result = convert(tmp_path / "a.pt", tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "no known naming" in result.output
    assert "\x1b" not in result.output


# Safetensors from strangers


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


def entry(dtype: str = "F32", shape: Sequence[int] = (1,), offsets: Sequence[int] = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (b"", None, "not a safetensors file, or damaged"),
        (b"{}", 2**63, "header of 9223372036854775808 bytes, more than"),
        (b"{}", 5_000_000, "header of 5000000 bytes, more than"),
        (b"{}", 100, "not a safetensors file, or damaged"),
        (b"{" * 100_000, None, "not a safetensors file, or damaged"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None, "not a safetensors file, or damaged"),
        (b"\xff\xfe{}", None, "not a safetensors file, or damaged"),
        (["a"], None, "not a safetensors file, or damaged"),
        ({"a": entry(offsets=(0, 8))}, None, "not a safetensors file, or damaged"),
        ({"a": entry(offsets=(4, 0))}, None, "not a safetensors file, or damaged"),
        ({"a": entry(offsets=(-4, 0))}, None, "not a safetensors file, or damaged"),
        ({"a": entry(shape=(2**62, 2**62))}, None, "not a safetensors file, or damaged"),
        ({"a": entry(shape=(-1,))}, None, "not a safetensors file, or damaged"),
        ({"a": entry(), "b": entry()}, None, "not a safetensors file, or damaged"),  # the same bytes
        ({"a": entry("Q7")}, None, "not a safetensors file, or damaged"),
        ({"a": entry(), "__metadata__": {"quo-vadis": {"format": 1}}}, None, "not a safetensors file, or damaged"),
        ({"a": entry(), "__metadata__": {"quo-vadis": "{"}}, None, "its header is no JSON"),
        ({"a": entry(), "__metadata__": {"quo-vadis": "[" * 100_000}}, None, "its header is no JSON"),
        ({"a": entry(), "__metadata__": {"quo-vadis": "[]"}}, None, "its header is a list"),
        ({"a": entry(), "__metadata__": {"quo-vadis": "{}"}}, None, "no known naming"),
        (
            {"a": entry(), "__metadata__": {"quo-vadis": '{"format": 3}'}},
            None,
            "has format 3, version of type",
        ),
        ({"a": entry(), "__metadata__": {"quo-vadis": '{"training": 1}'}}, None, "a training to resume"),
        ({"a": entry(), "__metadata__": {"format": "pt"}}, None, r"no known naming .* are \['a'\]"),
        ({"Conv3d_1a_7x7.conv3d.weight": entry()}, None, "286 missing"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: object, length: int | None, message: str) -> None:
    path = write_raw(tmp_path / "hostile.safetensors", header, bytes(4), length)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_damaged_headers_are_errors_of_the_checkpoint(tmp_path: Path) -> None:
    """A thousand files, each a sound one with a few bytes of its header changed; none may crash or be believed."""
    sound = tmp_path / "sound.safetensors"
    header = {"format": "quo-vadis-network", "format_version": 4, "architecture": "i3d", "streams": ["rgb"]}
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(5)}, sound, {"quo-vadis": json.dumps(header)})
    content = sound.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    rng, path = random.Random(0), tmp_path / "damaged.safetensors"
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(start)] = rng.choice([rng.randrange(256), *b'0129"{}[],:-'])
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Logits.bias": None}, r"1 missing: Logits\.bias"),
        ({"more": torch.zeros(1)}, "1 left over: more"),
        ({"Logits.bias": torch.zeros(4)}, r"Logits\.bias \[4\] instead of \[3\]"),
        ({"Logits.weight": torch.zeros(())}, r"Logits\.weight \[\] instead of"),
        ({"Logits.weight": torch.zeros(0, 1024, 1, 1, 1)}, r"Logits\.weight \[0, 1024, 1, 1, 1\] instead of \[1, "),
        ({"Logits.bias": torch.zeros(3, dtype=torch.int64)}, r"no plain tensors of floating point: Logits\.bias"),
        ({"Logits.bias": torch.tensor([0, torch.inf, 0])}, r"1 not finite: Logits\.bias"),
        ({"Logits.bias": torch.tensor([0, 1e300, 0], dtype=torch.float64)}, r"1 not finite: Logits\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, i3d_file: Path, change: dict[str, Tensor | None], message: str
) -> None:
    checkpoint = load_checkpoint(i3d_file)
    header = {
        "format": "quo-vadis-network",
        "format_version": 4,
        "architecture": "i3d",
        "streams": ["rgb"],
        "temporal_padding": "zero",
        "classes": None,
    }
    tensors = {name: tensor for name, tensor in (checkpoint.state_dict | change).items() if tensor is not None}
    save_file(tensors, tmp_path / "a.safetensors", {"quo-vadis": json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_renamed_file_is_still_what_it_is(tmp_path: Path, i3d_file: Path, i3d: Network) -> None:
    (tmp_path / "model.pt").write_bytes(i3d_file.read_bytes())
    assert load_checkpoint(tmp_path / "model.pt").format == "safetensors"
    torch.save(i3d.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"not a safetensors file|header of"):
        load_checkpoint(tmp_path / "b.safetensors")


def test_another_architecture_is_no_i3d(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", network("lstm", ("rgb",)), None)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: holds the architecture lstm, not i3d"):
        load_i3d(tmp_path / "a.safetensors")
