"""The reader of TensorFlow checkpoints, against a writer that is only here."""

import random
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch

from model import I3D, CheckpointError, list_variables, load_checkpoint, load_i3d, read_checkpoint

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}

Entries = dict[str, bytes]


# A writer of tables and bundles, as TensorFlow's BundleWriter lays them out


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative numbers are 64-bit two's complement
    digits = []
    while True:
        digits.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(digits)


def masked_crc(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % (1 << 32)


def number_field(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def message_field(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def header(shards: int = 1, endianness: int = 0) -> bytes:
    version = message_field(3, number_field(1, 1))
    return number_field(1, shards) + (number_field(2, endianness) if endianness else b"") + version


def entry(
    dtype: int = 1, shape: tuple[int, ...] = (2,), shard: int = 0, offset: int = 0, size: int = 8, crc: int = 0
) -> bytes:
    """A BundleEntryProto; fields that are zero are left out, as protobuf does."""
    dims = b"".join(message_field(2, number_field(1, dim) if dim else b"") for dim in shape)
    fields = number_field(1, dtype) + message_field(2, dims)
    for field, number in ((3, shard), (4, offset), (5, size)):
        fields += number_field(field, number) if number else b""
    return fields + varint(6 << 3 | 5) + crc.to_bytes(4, "little")


def block(entries: list[tuple[bytes, bytes]], restart_interval: int = 16) -> bytes:
    content = bytearray()
    restarts = [0]
    previous = b""
    for position, (key, value) in enumerate(entries):
        shared = 0
        if position % restart_interval:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        elif position:
            restarts.append(len(content))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return bytes(content) + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def finish_table(blocks: list[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """A table of blocks, each with the last key in it."""
    content = bytearray()

    def append(body: bytes) -> bytes:
        handle = varint(len(content)) + varint(len(body))
        checked = body + bytes([compression])
        content.extend(checked + masked_crc(checked).to_bytes(4, "little"))
        return handle

    handles = [(key, append(body)) for key, body in blocks]
    footer = append(block([])) + append(block(handles, restart_interval=1))
    return bytes(content) + footer.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")


def table(entries: list[tuple[bytes, bytes]], block_entries: int = 5) -> bytes:
    groups = [entries[start : start + block_entries] for start in range(0, len(entries), block_entries)]
    return finish_table([(group[-1][0], block(group, restart_interval=3)) for group in groups])


def index_of(variables: Entries, head: bytes | None = None) -> bytes:
    named = sorted((name.encode(), value) for name, value in variables.items())
    return table([(b"", header() if head is None else head), *named])


def bundle(arrays: dict[str, np.ndarray]) -> tuple[Entries, bytes]:
    """Index entries and the data file of some variables."""
    entries: Entries = {}
    data = bytearray()
    for name, array in sorted(arrays.items()):
        content = array.tobytes()
        entries[name] = entry(DTYPES[array.dtype.name], array.shape, 0, len(data), len(content), masked_crc(content))
        data += content
    return entries, bytes(data)


def write(folder: Path, index: bytes, data: bytes | None) -> Path:
    prefix = folder / "model.ckpt"
    Path(f"{prefix}.index").write_bytes(index)
    if data is not None:
        Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def small_arrays() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    arrays = {
        f"scope/Mixed_{number}/Branch_{number % 3}/w": numbers.normal(size=(number % 4 + 1, 3)).astype(np.float32)
        for number in range(12)
    }
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["global_step"] = np.array(115_000, np.int64)
    arrays["half"] = numbers.normal(size=5).astype(np.float16)
    arrays["picture"] = numbers.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    arrays["scope/double"] = numbers.normal(size=(1, 1, 1, 1, 2))
    return arrays


# Sound checkpoints


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = small_arrays()
    entries, data = bundle(arrays)
    prefix = write(tmp_path, index_of(entries), data)
    for path in (prefix, str(prefix), f"{prefix}.index"):
        read = read_checkpoint(path)
        assert list(read) == sorted(arrays)
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype, name
            assert read[name].shape == array.shape, name
            np.testing.assert_array_equal(read[name], array)
            assert read[name].flags.writeable, name


def test_the_index_alone_is_enough_to_list(tmp_path: Path) -> None:
    arrays = small_arrays()
    prefix = write(tmp_path, index_of(bundle(arrays)[0]), None)
    assert list_variables(prefix) == {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001: cannot be read: No such file"):
        read_checkpoint(prefix)


def test_several_data_files(tmp_path: Path) -> None:
    first, second = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.int32)
    entries = {
        "a": entry(1, (3,), 0, 0, 12, masked_crc(first.tobytes())),
        "b": entry(3, (4,), 1, 0, 16, masked_crc(second.tobytes())),
    }
    prefix = write(tmp_path, index_of(entries, header(shards=2)), None)
    Path(f"{prefix}.data-00000-of-00002").write_bytes(first.tobytes())
    Path(f"{prefix}.data-00001-of-00002").write_bytes(second.tobytes())
    read = read_checkpoint(prefix)
    np.testing.assert_array_equal(read["a"], first)
    np.testing.assert_array_equal(read["b"], second)


def test_released_checksums_hold(shared: Path) -> None:
    prefix = shared / "weights" / "rgb_scratch" / "model.ckpt"
    arrays = read_checkpoint(prefix)
    assert len(arrays) == 230
    stem = arrays["RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w"]
    assert stem.shape == (7, 7, 7, 3, 64)
    assert stem.dtype == np.float32


# Damage: every byte of a small index, every length of it; every byte of the data


def test_every_damaged_byte_of_the_index_is_found(tmp_path: Path) -> None:
    index = index_of(bundle(small_arrays())[0])
    prefix = write(tmp_path, index, None)
    sound = list_variables(prefix)
    unnoticed = []
    for position in range(len(index)):
        damaged = bytearray(index)
        damaged[position] ^= 0x41
        write(tmp_path, bytes(damaged), None)
        try:
            variables = list_variables(prefix)
        except CheckpointError:
            continue
        assert variables == sound
        unnoticed.append(position)
    # Only the footer's padding, between the places of two blocks and the magic number.
    padding_start = len(index[-FOOTER_BYTES:-8].rstrip(b"\0")) + len(index) - FOOTER_BYTES
    assert unnoticed == list(range(padding_start, len(index) - 8))


def test_every_truncated_index_is_found(tmp_path: Path) -> None:
    index = index_of(bundle(small_arrays())[0])
    for length in range(len(index)):
        prefix = write(tmp_path, index[:length], None)
        with pytest.raises(CheckpointError, match="index: "):
            list_variables(prefix)


def test_damaged_and_truncated_data_are_found(tmp_path: Path) -> None:
    entries, data = bundle(small_arrays())
    index = index_of(entries)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        prefix = write(tmp_path, index, bytes(damaged))
        with pytest.raises(CheckpointError, match=r"data-00000-of-00001: checksum of .* does not match"):
            read_checkpoint(prefix)
    prefix = write(tmp_path, index, data[:-1])
    with pytest.raises(CheckpointError, match=f"the file has {len(data) - 1}"):
        read_checkpoint(prefix)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    prefix = write(tmp_path, bytes(1000), b"")
    with pytest.raises(CheckpointError, match="wrong magic number"):
        list_variables(prefix)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        list_variables(tmp_path / "other")
    (tmp_path / "folder.index").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        list_variables(tmp_path / "folder")


# Hostile files: all checksums hold


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (entry(dtype=7), "a: has TensorFlow's dtype 7, which is not supported"),
        (entry(dtype=10**6), "dtype 1000000"),
        (entry(dtype=-1), "dtype -1"),
        (entry(offset=-8), "at offset -8"),
        (entry(size=-8, shape=(-2,)), r"impossible shape \[-2\]"),
        (entry(size=-8), "with -8 bytes"),
        (entry(shape=(-1, -2)), "impossible shape"),
        (entry(shape=(3,)), r"has 8 bytes, shape \[3\] of float32 needs another number"),
        (entry(shape=(1 << 61,), size=1 << 63), "impossible shape"),
        (entry(shape=(1 << 40,), size=1 << 42), r"bytes \[0, 4398046511104\), the file has 24"),
        (entry(shape=(0, 1 << 62), size=0), "impossible shape"),
        (entry(shape=(1,) * 200, size=4), "more than 32 dimensions"),
        (entry(offset=20), r"bytes \[20, 28\), the file has 24"),
        (entry(offset=(1 << 63) - 1), "the file has 24"),
        (entry(shard=1), "is in data file 1 of 1"),
        (entry(shard=-1), "is in data file -1 of 1"),
        (entry(offset=4), "overlaps"),
        (entry() + message_field(7, b""), "slices"),
        (number_field(1, 1) + message_field(2, number_field(3, 1)), "unknown rank"),
        (number_field(1, 1) + number_field(2, 5), "a number where a message belongs"),
        (message_field(1, b"abc"), "a message where a number belongs"),
        (varint(1 << 3 | 3), "wire type 3"),
        (varint(2 << 3 | 2) + varint(1 << 60) + b"short", "ends early"),
        (varint(6 << 3 | 5) + b"ab", "ends early"),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than 64 bits"),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "more than 64 bits"),
        (b"\x08\xff", "ends within a number"),
        (b"", "dtype 0"),
    ],
)
def test_a_hostile_entry_is_refused(tmp_path: Path, hostile: bytes, message: str) -> None:
    data = bytes(24)
    crc = masked_crc(bytes(8))
    prefix = write(tmp_path, index_of({"a": hostile, "b": entry(offset=0, crc=crc)}), data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(prefix)
    assert str(prefix) in str(caught.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (header(shards=0), "names 0 data files"),
        (header(shards=-1), "names -1 data files"),
        (header(shards=1 << 40), "data files"),
        (header(endianness=1), "big-endian"),
        (b"\xff", "ends within a number"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, head: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        list_variables(write(tmp_path, index_of({"a": entry()}, head), None))


def hostile_tables() -> list[tuple[str, bytes, str]]:
    head = (b"", header())
    named = (b"a", entry())
    no_entries = (0).to_bytes(4, "little")
    long_key = varint(0) + varint(2000) + varint(0) + bytes(2000) + no_entries
    far = varint(1 << 50) + varint(8)
    footer = far.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")
    sound = block([head, named])
    handle = varint(0) + varint(len(sound))
    trailer = masked_crc(sound + b"\0").to_bytes(4, "little")
    repeated = block([(b"a", handle), (b"b", handle)])
    content = sound + b"\0" + trailer
    list_handle = varint(len(content)) + varint(len(repeated))
    content += repeated + b"\0" + masked_crc(repeated + b"\0").to_bytes(4, "little")
    loop = content + (handle + list_handle).ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")
    return [
        ("no header", table([named]), "the header is missing"),
        ("no entries", table([]), "the table is empty"),
        ("unsorted", table([head, (b"b", entry()), named]), "not in order at b'a'"),
        ("twice the same", table([head, named, named]), "not in order at b'a'"),
        ("not text", table([head, (b"\xff", entry())]), "not UTF-8"),
        ("compressed", finish_table([(b"a", block([head, named]))], compression=1), r"compressed \(type 1\)"),
        ("long key", finish_table([(b"a", long_key)]), "impossible lengths"),
        ("restarts", finish_table([(b"a", (1 << 31).to_bytes(4, "little"))]), "claims 2147483648 restart points"),
        ("empty block", finish_table([(b"a", b"")]), "too short"),
        ("shares too much", finish_table([(b"a", b"\x05\x01\x00a" + no_entries)]), "impossible lengths"),
        ("value too long", finish_table([(b"a", b"\x00\x01\x7fa" + no_entries)]), "impossible lengths"),
        ("ends in an entry", finish_table([(b"a", b"\x00\xff" + no_entries)]), "ends within a number"),
        ("far block", bytes(100) + footer, "passes the table's end|ends within|checksum"),
        ("block listed twice", loop, "blocks overlap"),
        ("too large", bytes(5 << 20), "too large for an index"),
    ]


@pytest.mark.parametrize(
    ("index", "message"), [pytest.param(index, message, id=name) for name, index, message in hostile_tables()]
)
def test_a_hostile_table_is_refused(tmp_path: Path, index: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        list_variables(write(tmp_path, index, None))


def test_random_faults_under_valid_checksums_are_checkpoint_errors_or_nothing(tmp_path: Path) -> None:
    chance = random.Random(0)
    entries, data = bundle(small_arrays())
    named = [(b"", header()), *sorted((name.encode(), value) for name, value in entries.items())]
    refused = 0
    for _ in range(800):
        body = bytearray(block(named, restart_interval=4))
        for _ in range(chance.randint(1, 3)):
            body[chance.randrange(len(body))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        prefix = write(tmp_path, finish_table([(named[-1][0], bytes(body))]), data)
        try:
            read_checkpoint(prefix)
        except CheckpointError:
            refused += 1
    assert refused > 500


# An I3D in this format


def released_arrays(network: I3D, scope: str, *, padded_norms: bool) -> dict[str, np.ndarray]:
    """A network's weights under DeepMind's names and in TensorFlow's order of dimensions."""
    arrays = {}
    for name, tensor in network.state_dict().items():
        array = tensor.numpy()
        if name == "Logits.weight":
            name = "Logits/Conv3d_0c_1x1/conv_3d/w"
        elif name == "Logits.bias":
            name = "Logits/Conv3d_0c_1x1/conv_3d/b"
        else:
            for ours, theirs in {
                ".conv.weight": "/conv_3d/w",
                ".norm.bias": "/batch_norm/beta",
                ".norm.running_mean": "/batch_norm/moving_mean",
                ".norm.running_var": "/batch_norm/moving_variance",
                ".branch_": "/Branch_",
                ".": "/",
                "Mixed_5b/Branch_2/Conv3d_0b_3x3": "Mixed_5b/Branch_2/Conv3d_0a_3x3",
            }.items():
                name = name.replace(ours, theirs)
        if array.ndim == 5:
            array = array.transpose(2, 3, 4, 1, 0)
        elif padded_norms and "batch_norm" in name:
            array = array.reshape(1, 1, 1, 1, -1)
        arrays[scope + name] = np.ascontiguousarray(array)
    return arrays


@pytest.fixture(scope="module")
def flow_network() -> I3D:
    torch.manual_seed(0)
    network = I3D(num_classes=6, in_channels=2).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.3, 0.6)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.1)
    return network


@pytest.mark.parametrize(
    ("scope", "kinetics600"), [("Flow/inception_i3d/", False), ("", True)], ids=["released", "kinetics600"]
)
def test_an_i3d_is_loaded_with_equal_outputs(tmp_path: Path, flow_network: I3D, scope: str, kinetics600: bool) -> None:
    arrays = released_arrays(flow_network, scope, padded_norms=kinetics600)
    assert len(arrays) == 230
    if kinetics600:
        trained = [name for name in arrays if not name.endswith(("moving_mean", "moving_variance"))]
        arrays |= {f"{name}/Momentum": np.zeros_like(arrays[name]) for name in trained}
        assert len(arrays) == 346
    entries, data = bundle(arrays)
    prefix = write(tmp_path, index_of(entries), data)

    checkpoint = load_checkpoint(prefix)
    assert (checkpoint.format, checkpoint.architecture, checkpoint.streams) == ("tensorflow", "i3d", ("flow",))
    assert checkpoint.num_classes == 6
    assert checkpoint.classes is None
    assert list(checkpoint.sha256) == ["model.ckpt.index", "model.ckpt.data-00000-of-00001"]
    clip = torch.rand(1, 2, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(load_i3d(f"{prefix}.index", "flow")(clip), flow_network(clip))
    with pytest.raises(CheckpointError, match="holds a network of flow, one of rgb was asked for"):
        load_i3d(prefix, "rgb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("Mixed_4c/Branch_1/Conv3d_0b_3x3/conv_3d/w"), "1 missing: Mixed_4c/Branch_1/Conv3d_0b_3x3"),
        (lambda a: a.update({"Mixed_6a/w": np.zeros(1, np.float32)}), "1 left over: Mixed_6a/w"),
        (lambda a: a.update({"beta/Momentum": np.zeros(1, np.float32)}), "1 left over: beta/Momentum"),
        (
            lambda a: a.update({"Mixed_3b/Branch_0/Conv3d_0a_1x1/batch_norm/beta": np.zeros(63, np.float32)}),
            r"1 of the wrong shape: Mixed_3b/Branch_0/Conv3d_0a_1x1/batch_norm/beta \[63\] instead of \[64\]",
        ),
        (
            lambda a: a.update({"Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 7, 4, 64), np.float32)}),
            r"takes 4 channels, neither 3 \(rgb\) nor 2 \(flow\)",
        ),
        (
            lambda a: a.update({"Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 2, 64), np.float32)}),
            r"the first convolution has the shape \[7, 7, 2, 64\]",
        ),
        (
            lambda a: a.update({"Conv3d_1a_7x7/batch_norm/beta": np.zeros(64, np.int32)}),
            "1 not floating point: Conv3d_1a_7x7/batch_norm/beta",
        ),
    ],
)
def test_what_does_not_fit_an_i3d_is_named_before_data_are_read(
    tmp_path: Path, flow_network: I3D, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    arrays = released_arrays(flow_network, "", padded_norms=False)
    change(arrays)
    prefix = write(tmp_path, index_of(bundle(arrays)[0]), None)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(prefix)
    assert str(prefix) in str(caught.value)
