"""Chunked inference: pieces of a video give what the whole gives, in bounded memory, and where each step is."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import I3D, LOGITS, chunked_endpoints, chunked_logits, load_i3d, step_frames
from model.chunks import ENDPOINTS
from tests.test_i3d import SIDE, random_network, video


@pytest.fixture(scope="module", params=["zero", "replicate"])
def network(request: pytest.FixtureRequest) -> I3D:
    return random_network(temporal_padding=request.param).double()


def cut(frames: int, how: str) -> list[int]:
    """Lengths of pieces."""
    draw = random.Random(frames)
    lengths = []
    while (left := frames - sum(lengths)) > 0:
        lengths.append(min(left, {"one by one": 1, "anyhow": draw.randint(1, 23), "16": 16}[how]))
    return lengths


def whole(network: I3D, x: Tensor) -> dict[str, Tensor]:
    return {LOGITS: network.logits_per_step(x), **{name: network.endpoint(x, name) for name in I3D.ENDPOINTS}}


# All remainders of 8, by which SAME padding differs in three places, and the shortest video of each.
@pytest.mark.parametrize("frames", [*range(9, 17), 27, pytest.param(79, marks=pytest.mark.slow)])
def test_pieces_give_what_the_whole_gives(network: I3D, frames: int) -> None:
    x = video(1, 3, frames, SIDE, SIDE).double()
    with torch.no_grad():
        wanted = whole(network, x)
        for how in ("one by one", "anyhow", "16"):
            found: dict[str, list[Tensor]] = {name: [] for name in ENDPOINTS}
            for name, steps in chunked_endpoints(network, x.split(cut(frames, how), dim=2), frames, ENDPOINTS):
                found[name].append(steps)
            for name, steps in found.items():
                torch.testing.assert_close(torch.cat(steps, dim=2), wanted[name], rtol=1e-9, atol=1e-9)


def test_batches_of_videos_and_logits(network: I3D) -> None:
    x = video(2, 3, 50, 33, 47).double()
    with torch.no_grad():
        torch.testing.assert_close(chunked_logits(network, x.split(13, dim=2), 50), network(x), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_released_network_on_the_released_cricket_clip_in_pieces(shared: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(shared / "data" / "v_CricketShot_g04_c01_rgb.gif")) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    x = torch.stack(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    network = load_i3d(shared / "weights" / "rgb_scratch" / "model.ckpt", "rgb")
    with torch.inference_mode():
        features = network.endpoint(x, "Mixed_5c")
        pieces = chunked_endpoints(network, x.split(16, dim=2), 79, ("Mixed_5c", LOGITS))
        found = [(name, steps) for name, steps in pieces]
        in_pieces = torch.cat([steps for name, steps in found if name == "Mixed_5c"], dim=2)
        logits = torch.cat([steps for name, steps in found if name == LOGITS], dim=2).mean(dim=2)
        assert (in_pieces - features).abs().max() < 1e-4
        assert (logits - network.classify(features).mean(dim=2)).abs().max() < 1e-4


def test_memory_does_not_grow_with_the_video() -> None:
    network = random_network()
    alive: list[int] = []

    def pieces() -> Iterator[Tensor]:
        for number in range(20):
            alive.append(sum(x.numel() for x in gc.get_objects() if type(x) is Tensor))
            yield video(1, 3, 16, SIDE, SIDE, seed=number)

    with torch.no_grad():
        chunked_logits(network, pieces(), 320)
    assert alive[-1] - alive[5] < 1000  # the logits of 28 steps, which are kept
    assert alive[-1] - alive[0] < 4 * 3 * 16 * SIDE * SIDE  # less than a piece and what 3 pieces more would be


@pytest.mark.parametrize("frames", [24, 25, 26, 28])
@pytest.mark.parametrize("name", ["Conv3d_1a_7x7", "Conv3d_2c_3x3", "Mixed_3c"])
def test_a_step_is_in_the_middle_of_the_frames_that_it_sees(name: str, frames: int) -> None:
    network = random_network().double()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.abs_()  # so that nothing is lost at a ReLU
    x = video(1, 3, frames, SIDE, SIDE).double().requires_grad_()
    steps = network.endpoint(x, name)
    places = step_frames(network, frames, name)
    assert places.shape == (steps.shape[2],)
    middle = len(places) // 2
    (gradient,) = torch.autograd.grad(steps[:, :, middle].sum(), x)
    seen = gradient.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    assert (seen[0] + seen[-1]).item() / 2 == places[middle]


def test_steps_of_known_videos() -> None:
    network = random_network()
    assert step_frames(network, 64, "Mixed_5c").tolist() == [5, 13, 21, 29, 37, 45, 53, 61]
    assert step_frames(network, 64, LOGITS).tolist() == [9, 17, 25, 33, 41, 49, 57]
    assert step_frames(network, 17, "Mixed_5c").tolist() == [2, 10, 16]  # not after the last frame


@pytest.mark.parametrize(
    ("lengths", "frames", "message"),
    [
        ([8], 8, "8 frames, I3D needs at least 9"),
        ([9, 9], 19, "has 18 frames, 19 were announced"),
        ([9, 9], 17, "has at least 18 frames, 17 were announced"),
        ([], 9, "has 0 frames, 9 were announced"),
    ],
)
def test_another_number_of_frames_is_refused(lengths: list[int], frames: int, message: str) -> None:
    pieces = (video(1, 3, length, SIDE, SIDE) for length in lengths)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        chunked_logits(random_network(), pieces, frames)


def test_other_mistakes_are_refused() -> None:
    network = random_network()
    x = video(1, 3, 16, SIDE, SIDE)
    with pytest.raises(ValueError, match="no endpoint 'Mixed_6a'; there are Conv3d_1a_7x7"):
        list(chunked_endpoints(network, [x], 16, ["Mixed_6a"]))
    with pytest.raises(ValueError, match="none"):
        list(chunked_endpoints(network, [x], 16, []))
    with pytest.raises(ValueError, match="scaled"):
        chunked_logits(network, [x, x * 127], 32)
    with pytest.raises(ValueError, match=r"\[1, 3, 16, 48, 48\] after \[1, 3, 16, 32, 32\]"):
        chunked_logits(network, [x, video(1, 3, 16, 48, 48)], 32)
    with pytest.raises(ValueError, match="training mode"):
        chunked_logits(network.train(), [x], 16)
