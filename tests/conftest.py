"""What several tests need: the folder of real clips and weights, small videos, a server on loopback."""

import importlib
import importlib.util
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
from google.cloud import storage

from tests.emulator import google_storage

# The same examples each time, so that what fails has been changed; `pytest --hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of tars are kept in the user's cache folder: not of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and released weights, which the project does not need and does not ship."""
    folder = Path(os.environ.get("QUO_VADIS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real clips and weights at {folder} (set QUO_VADIS_SHARED)")
    return folder


@pytest.fixture(scope="session")
def torchvision_models() -> Iterator[ModuleType]:
    """`torchvision.models`, the networks of pictures that others have."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        yield importlib.import_module("torchvision.models")
    except RuntimeError as error:
        # PyPI's wheel is built with CUDA: beside torch's build without, its operators are missing. No network needs
        # these two, but torchvision is not imported without them.
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        import torch

        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield importlib.import_module("torchvision.models")


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """Write a small video with ffmpeg: moving test picture, any options."""

    def make(path: Path, *options: str, size: str = "160x120", rate: str = "25", seconds: float = 2) -> Path:
        source = f"testsrc2=size={size}:rate={rate}:duration={seconds}"
        command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", source, *options, f"file:{path}"]
        subprocess.run(command, check=True, timeout=60)
        return path

    return make


@pytest.fixture(scope="session")
def _google_storage() -> Iterator[storage.Client]:
    with google_storage() as client:
        yield client


@pytest.fixture
def bucket(_google_storage: storage.Client) -> storage.Bucket:
    """An empty bucket of a Google Storage on loopback; `gs://{bucket.name}/…` are its objects."""
    return _google_storage.create_bucket(f"bucket-{secrets.token_hex(4)}")


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder over HTTP on loopback; gives the base URL."""
    servers = []

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
