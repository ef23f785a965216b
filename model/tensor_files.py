"""Files of named tensors, PyTorch's and safetensors', read as data alone and written whole or not at all."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from model.tensorflow_checkpoint import CheckpointError

_HEADER_KEY = (
    "quo-vadis"  # of what safetensors calls metadata: one text, because the order of several is left to chance
)

# Released networks' headers have 25 kB. The library itself would read 100 MB of hostile JSON.
_LARGEST_HEADER_BYTES = 4 << 20


def read_tensor_file(file: Path) -> dict[Any, Any]:
    """What a file holds: a state dict, or one among other things.

    Of a safetensors file: its tensors by name; where `write_safetensors` wrote it, the header with the tensors under
    "model". Tensors are in main memory and share it with no file.

    Raises:
        CheckpointError: if the file cannot be read, is damaged or of neither kind, or wants to run code.
    """
    try:
        with file.open("rb") as stream:
            beginning = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}") from error
    if file.suffix == ".safetensors" or beginning[8:] == b"{":
        return _read_safetensors(file, int.from_bytes(beginning[:8], "little"))
    try:
        _refuse_expansion(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise CheckpointError(
            f"not a file of plain tensors as torch.save writes them, or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}, not a state dict")
    return content


def _refuse_expansion(file: Path) -> None:
    """torch.save compresses nothing, but torch.load would unpack a small file into a thousand times its size."""
    if zipfile.is_zipfile(file):  # else it is of the older form, or of none
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > file.stat().st_size:
            raise CheckpointError(f"unpacks into {unpacked} bytes, the file has {file.stat().st_size}")


def _read_safetensors(file: Path, header_bytes: int) -> dict[Any, Any]:
    if header_bytes > _LARGEST_HEADER_BYTES:
        raise CheckpointError(f"a safetensors header of {header_bytes} bytes, more than {_LARGEST_HEADER_BYTES}")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:  # checks lengths, offsets, shapes and dtypes
            text = (opened.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # a hostile header can name a dtype that torch has no tensors of
        raise CheckpointError(f"not a safetensors file, or damaged ({error})") from error
    if text is None:
        return tensors
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no JSON ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"its header is a {type(header).__name__}, not an object")
    return {**header, "model": tensors}


def write_torch(file: Path, content: Mapping[str, object]) -> None:
    """Writes what `torch.load(weights_only=True)` reads back; equal content gives equal bytes.

    Raises:
        OSError: if the file cannot be written; nothing is left behind, and a file of that name stays as it was.
    """
    buffer = io.BytesIO()  # torch's own writer takes a full disk for a fault of its own
    torch.save(dict(content), buffer)
    _write(file, buffer.getbuffer())


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Writes a safetensors file, with a header of JSON values that `read_tensor_file` gives back.

    Raises:
        OSError: as `write_torch`.
    """
    text = json.dumps(header, ensure_ascii=False, sort_keys=True)
    _write(file, memoryview(safetensors_bytes(dict(tensors), {_HEADER_KEY: text})))


def _write(file: Path, content: memoryview) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or a power cut could undo the renaming
    finally:
        os.close(directory)


@contextmanager
def named_in_errors(file: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def sha256_of(files: Sequence[Path]) -> dict[str, str]:
    """File name → SHA-256 in hexadecimal digits."""
    sums = {}
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        sums[file.name] = digest.hexdigest()
    return sums
