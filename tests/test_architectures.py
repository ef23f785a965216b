"""What all networks of the paper must do, and what each of them is."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import C3D, I3D, ConvNetLSTM, Fused, TwoStream, build, check_range
from tests.networks import BOTH, CHANNELS, CLASSES, SHAPES, clips, random_network, random_values

NAMES = [f"{architecture}-{'+'.join(streams)}" for architecture, streams in SHAPES]
every_network = pytest.mark.parametrize("case", SHAPES, ids=NAMES, indirect=True, scope="module")
LARGE = [pytest.param(case, marks=pytest.mark.slow) if case[0] == "c3d" else case for case in SHAPES]
every_network_large_ones_slowly = pytest.mark.parametrize("case", LARGE, ids=NAMES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request):
    return request.param


@pytest.fixture(scope="module")
def network(case):
    """One network of each kind for all tests; each test says whether it trains."""
    return random_network(*case)


# What all must do


@every_network_large_ones_slowly
def test_shapes_of_logits_in_training_and_in_evaluation(case, network):
    steps = (25,) if case[0] == "lstm" else ()
    assert (network.architecture, network.streams, network.num_classes) == (*case, CLASSES)
    with torch.no_grad():
        assert network.train()(*clips(case)).shape == (2, CLASSES, *steps)
        assert network.eval()(*clips(case)).shape == (2, CLASSES)


@every_network
def test_every_parameter_gets_a_finite_gradient(case, network):
    logits = network.train()(*clips(case))
    targets = torch.tensor([0, 2])[:, None].expand(-1, 25) if case[0] == "lstm" else torch.tensor([0, 2])
    F.cross_entropy(logits, targets).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    network.zero_grad()


@every_network_large_ones_slowly
def test_evaluation_is_deterministic_alone_and_not_what_training_computes(case, network):
    batch = clips(case)
    with torch.no_grad():
        evaluated = network.eval()(*batch)
        assert torch.equal(network(*batch), evaluated)
        alone = network(*(x[1:] for x in batch))
        torch.testing.assert_close(alone, evaluated[1:], rtol=1e-4, atol=1e-4)
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network(*batch)
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())

        network.train()
        torch.manual_seed(1)
        trained = network(*batch)
        assert not any(
            torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items() if "running" in name
        )
        torch.manual_seed(1)
        assert torch.equal(network(*batch), trained)
        assert not torch.allclose(network(*batch), trained)  # dropout
    assert not torch.allclose(trained[..., -1] if trained.ndim == 3 else trained, evaluated, atol=1e-2)


@every_network_large_ones_slowly
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_videos_give_finite_logits(case, network, value):
    """Their batches have no variance: the smallest denominators that batch normalisation can meet."""
    batch = [torch.full_like(x, value) for x in clips(case)]
    with torch.no_grad():
        assert network.train()(*batch).isfinite().all()
        assert network.eval()(*batch).isfinite().all()


@every_network_large_ones_slowly
def test_bfloat16_gives_nearly_the_same_logits(case, network):
    batch = clips(case)
    with torch.no_grad():
        expected = network.eval()(*batch)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(*batch)
            assert network.train()(*batch).isfinite().all()
    assert (logits - expected).norm() < 0.05 * expected.norm()


@every_network_large_ones_slowly
def test_state_dict_round_trip(case, network):
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        again = build(*case, CLASSES)
    again.load_state_dict(torch.load(file, weights_only=True), assign=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(*clips(case)), network.eval()(*clips(case)))


@pytest.mark.parametrize("case", [case for case in SHAPES if case[0] != "c3d"], indirect=True, scope="module")
@pytest.mark.parametrize("side", [(33, 47), (40, 32)])
def test_odd_sizes(case, network, side):
    with torch.no_grad():
        logits = network.eval()(*clips(case, side=side))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


@every_network
def test_faults_in_the_input_are_named(case, network):
    frames, (height, width) = SHAPES[case]
    good = clips(case)
    stream = case[1][0]
    channels = CHANNELS[stream]
    video, others = good[0], good[1:]
    picture = video[:, :, 0]
    network.eval()

    def refuses(x: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            network(x, *others)

    refuses(picture, rf"{stream} input has shape \[2, {channels}, {height}, {width}\], it must be \[B, {channels}, T")
    refuses(torch.zeros(2, 5, *video.shape[2:]), f"5 channels, this network takes {channels}")
    refuses(torch.zeros(video.shape, dtype=torch.uint8), "uint8, it must be floats")
    refuses(video[..., :31], f"{height}x31 pixels")
    refuses(video * 127.5 + 127.5, r"must be scaled to \[-1, 1\]")
    refuses(video / 2 + 0.5, r"as if scaled to \[0, 1\], they must be scaled to \[-1, 1\]")
    refuses(torch.full_like(video, float("nan")), "scaled")
    if case[0] != "lstm":
        refuses(video[:, :, :-1], f"{frames[stream] - 1} frames, .* {frames[stream]}$")


@pytest.mark.parametrize("architecture", ["two-stream", "fused"])
def test_streams_that_do_not_match_are_named(architecture):
    with torch.device("meta"):
        network = build(architecture, BOTH, CLASSES)
        rgb, flow = (x.to("meta") for x in clips((architecture, BOTH)))
    with pytest.raises(ValueError, match=r"1 inputs, .* takes one of each stream: rgb, flow"):
        network(rgb)
    with pytest.raises(ValueError, match="flow input has 3 channels"):
        network(rgb, rgb)
    with pytest.raises(ValueError, match=r"different batches or sizes: rgb \[2, .* flow \[1,"):
        network(rgb, flow[:1])
    with pytest.raises(ValueError, match="different batches or sizes"):
        network(rgb, torch.empty(*flow.shape[:4], 70, device="meta"))


def test_ranges_that_only_look_unusual_pass():
    for stream in BOTH:
        for value in (-1.0, 0.0, 1.0):  # a black, a grey and a white video; flow at rest
            check_range(torch.full((1, 1), value), stream)
    bright = random_values(100) * 0.4 + 0.6  # from 0.2 up
    check_range(bright, "rgb")
    moving = torch.zeros(100)
    moving[:40] = 0.9  # part of the picture moves fast, nothing the other way
    check_range(moving, "flow")
    check_range(random_values(100) / 2 + 0.5)
    with pytest.raises(ValueError, match="flow input values"):
        check_range(torch.full((1, 1), 0.5), "flow")  # at rest, scaled to [0, 1]


# What each is


def test_networks_by_name():
    with torch.device("meta"):
        assert isinstance(build("lstm", ("flow",), 2), ConvNetLSTM)
        assert isinstance(build("c3d", ("flow",), 2), C3D)
        assert isinstance(build("two-stream", BOTH, 2), TwoStream)
        assert isinstance(build("fused", BOTH, 2, dropout=0.1), Fused)
        i3d = build("i3d", ("rgb",), 2, dropout=0.25, temporal_padding="replicate")
    assert isinstance(i3d, I3D)
    assert (i3d.dropout.p, i3d.temporal_padding) == (0.25, "replicate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("i3d", BOTH, 2), "i3d takes one stream, rgb or flow, not rgb, flow"),
        (("lstm", (), 2), "lstm takes one stream, rgb or flow, not none"),
        (("c3d", ("depth",), 2), "not depth"),
        (("two-stream", ("flow", "rgb"), 2), r"\('flow', 'rgb'\) must be rgb, flow, or both in this order"),
        (("fused", (), 2), r"streams \(\) must be"),
        (("resnet", ("rgb",), 2), "no architecture 'resnet', only lstm, c3d, two-stream, fused, i3d"),
        (("fused", BOTH, 0), "num_classes 0"),
    ],
)
def test_networks_that_do_not_exist_are_refused(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(*arguments)


@pytest.mark.parametrize("architecture", ["lstm", "c3d", "two-stream", "fused"])
def test_arguments_out_of_range_are_refused(architecture):
    streams = ("rgb",)
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"dropout 1\.0 is the probability of dropping"):
            build(architecture, streams, 2, dropout=1.0)
        with pytest.raises(ValueError, match=f"temporal_padding 'replicate' is of i3d alone, not of {architecture}"):
            build(architecture, streams, 2, temporal_padding="replicate")


@pytest.mark.parametrize("architecture", ["lstm", "c3d"])
def test_one_clip_is_no_batch_to_normalise_over(architecture):
    case = (architecture, ("rgb",))
    with torch.device("meta"):
        network = build(*case, CLASSES)
    with pytest.raises(ValueError, match="train on batches of at least 2"):
        network(*(x.to("meta") for x in clips(case, batch=1)))


def test_two_stream_averages_a_network_of_a_frame_and_one_of_ten_flows():
    network = random_network("two-stream", BOTH).eval()
    rgb, flow = clips(("two-stream", BOTH))
    stacked = torch.cat([flow[:, :, number] for number in range(10)], dim=1)  # x and y of one flow after the other
    with torch.no_grad():
        expected = (network.rgb(rgb[:, :, 0]) + network.flow(stacked)) / 2
        torch.testing.assert_close(network(rgb, flow), expected)
        assert not torch.allclose(network.rgb(rgb[:, :, 0]), expected, atol=1e-2)


def test_fused_joins_each_frame_with_the_ten_flows_from_it_on():
    network = random_network("fused", BOTH).eval()
    rgb, flow = clips(("fused", BOTH), side=(33, 33))
    with torch.no_grad():
        maps = []
        for number in range(5):
            snippet = torch.cat([flow[:, :, 10 * number + step] for step in range(10)], dim=1)
            maps.append(torch.cat([network.rgb(rgb[:, :, number]), network.flow(snippet)], dim=1))
        fused = network.fusion(torch.stack(maps, dim=2))  # [2, 512, 5, 2, 2]
        assert fused.shape == (2, 512, 5, 2, 2)
        padded = F.pad(fused, (0, 1, 0, 1, 1, 1))  # SAME: 5 → 3 and 2 → 1; zeros are below whatever a ReLU gives
        pooled = F.max_pool3d(padded, 3, 2)
        assert pooled.shape[2:] == (3, 1, 1)
        torch.testing.assert_close(network(rgb, flow), network.head(pooled.mean(dim=(2, 3, 4))))


def test_c3d_halves_time_five_times_and_space_too():
    with torch.device("meta"):
        network = build("c3d", ("rgb",), CLASSES)
        sizes = {}
        for name, layer in network.named_children():
            layer.register_forward_hook(lambda *run, name=name: sizes.update({name: tuple(run[2].shape[1:])}))
        network(torch.empty(2, 3, 16, 112, 112))
    assert sizes == {
        "conv1a": (64, 16, 112, 112),
        "pool1": (64, 8, 56, 56),
        "conv2a": (128, 8, 56, 56),
        "pool2": (128, 4, 28, 28),
        "conv3a": (256, 4, 28, 28),
        "conv3b": (256, 4, 28, 28),
        "pool3": (256, 2, 14, 14),
        "conv4a": (512, 2, 14, 14),
        "conv4b": (512, 2, 14, 14),
        "pool4": (512, 1, 7, 7),
        "conv5a": (512, 1, 7, 7),
        "conv5b": (512, 1, 7, 7),
        "pool5": (512, 1, 4, 4),
        "flatten": (8192,),
        "fc6": (4096,),
        "fc7": (4096,),
        "head": (CLASSES,),
    }
