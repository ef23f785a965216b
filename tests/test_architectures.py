"""What all networks of the paper must do, and what each of them is; table 1 and the fields of figure 3."""

import io
import re
from bisect import bisect_left

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor

from model import (
    C3D,
    I3D,
    BatchNorm,
    ConvNetLSTM,
    Fused,
    TwoStream,
    build,
    check_range,
    synchronise_batch_norm,
)
from model.lstm import BatchNormLSTM
from model.receptive_field import receptive_fields
from train.batch_norm import recompute_statistics
from train.table1 import FIGURE_3, PAPER, parameters, table1_command, table_row

BOTH = ("rgb", "flow")
CLASSES = 3
CHANNELS = {"rgb": 3, "flow": 2}
# Frames of each stream in training, and the smallest picture.
SHAPES = {
    ("lstm", ("rgb",)): ({"rgb": 25}, (32, 32)),
    ("lstm", ("flow",)): ({"flow": 25}, (32, 32)),
    ("c3d", ("rgb",)): ({"rgb": 16}, (112, 112)),
    ("two-stream", BOTH): ({"rgb": 1, "flow": 10}, (64, 64)),
    ("two-stream", ("rgb",)): ({"rgb": 1}, (64, 64)),
    ("two-stream", ("flow",)): ({"flow": 10}, (64, 64)),
    ("fused", BOTH): ({"rgb": 5, "flow": 50}, (32, 32)),
    ("fused", ("flow",)): ({"flow": 50}, (32, 32)),
    ("i3d", ("rgb",)): ({"rgb": 9}, (32, 32)),
    ("i3d", ("flow",)): ({"flow": 9}, (32, 32)),
}
NAMES = [f"{architecture}-{'+'.join(streams)}" for architecture, streams in SHAPES]
every_network = pytest.mark.parametrize("case", SHAPES, ids=NAMES, indirect=True, scope="module")
LARGE = [pytest.param(case, marks=pytest.mark.slow) if case[0] == "c3d" else case for case in SHAPES]
every_network_large_ones_slowly = pytest.mark.parametrize("case", LARGE, ids=NAMES, indirect=True, scope="module")


def random_values(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def clips(case, batch: int = 2, side: tuple[int, int] | None = None, seed: int = 0) -> list[Tensor]:
    frames, smallest = SHAPES[case]
    return [random_values(batch, CHANNELS[s], n, *(side or smallest), seed=seed) for s, n in frames.items()]


def random_network(architecture, streams, num_classes=CLASSES):
    """Statistics and offsets are not the initial ones. Its own initialisation takes seconds and is tested elsewhere."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = build(architecture, streams, num_classes)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.3, 0.6)  # so that activations neither die nor explode from layer to layer
            elif name.endswith("scale"):
                tensor.uniform_(0.1, 0.5)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1)
            else:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
    return network


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


# The LSTM


def reference_lstm(lstm: BatchNormLSTM, x: Tensor, trained: bool) -> Tensor:
    """Equations 6 to 8 of Cooijmans et al. on a state dict, one clip's gates written out one by one."""
    state = lstm.state_dict()
    units = lstm.hidden_units

    def normalise(y: Tensor, name: str, step: int, offset: Tensor | float = 0.0) -> Tensor:
        if trained:
            mean, variance = y.mean(dim=0), y.var(dim=0, unbiased=False)
        else:
            mean = state[f"{name}.of_step.{min(step, 3)}.running_mean"]
            variance = state[f"{name}.of_step.{min(step, 3)}.running_var"]
        return state[f"{name}.scale"] * (y - mean) / (variance + 1e-3).sqrt() + offset

    h = c = torch.zeros(len(x), units, dtype=x.dtype)
    outputs = []
    for step in range(x.shape[1]):
        from_input = normalise(x[:, step] @ state["input.weight"].T, "input_norm", step)
        from_state = normalise(h @ state["recurrent.weight"].T, "recurrent_norm", step)
        gates = from_input + from_state + state["bias"]
        i, f, g, o = (gates[:, n * units : (n + 1) * units] for n in range(4))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * normalise(c, "cell_norm", step, state["cell_offset"]).tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


@pytest.fixture
def small_lstm():
    torch.manual_seed(0)
    lstm = BatchNormLSTM(7, 5, steps=4).double()
    with torch.no_grad():
        for name, tensor in lstm.state_dict().items():
            tensor.uniform_(0.2, 0.9) if name.endswith(("var", "scale")) else tensor.normal_(0, 0.5)
    return lstm


@pytest.mark.parametrize(("trained", "frames"), [(True, 4), (False, 4), (False, 9)])
def test_lstm_is_that_of_recurrent_batch_normalisation(small_lstm, trained, frames):
    """Steps beyond the fourth, of which there are no statistics, take the fourth's."""
    x = random_values(6, frames, 7).double()
    expected = reference_lstm(small_lstm, x, trained)
    torch.testing.assert_close(small_lstm.train(trained)(x), expected)


def test_lstm_starts_with_small_scales_an_open_forget_gate_and_orthogonal_recurrence():
    lstm = BatchNormLSTM(7, 5, steps=2)
    assert all(torch.equal(n.scale, torch.full_like(n.scale, 0.1)) for n in (lstm.input_norm, lstm.cell_norm))
    assert lstm.bias.tolist() == [0] * 5 + [1] * 5 + [0] * 10
    for gate in lstm.recurrent.weight.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5))


def test_lstm_network_goes_by_the_order_of_all_frames_in_a_test_of_any_length():
    network = random_network("lstm", ("rgb",)).eval()
    video = random_values(1, 3, 50, 32, 32)
    with torch.no_grad():
        logits = network(video)
        assert logits.isfinite().all()
        earlier = video.clone()
        earlier[:, :, 40] = -video[:, :, 40]
        assert not torch.equal(network(earlier), logits)
        assert not torch.allclose(network(video.flip(2)), logits, atol=1e-4)
        assert network(video[:, :, :1]).shape == (1, CLASSES)


def test_lstm_network_trains_on_as_many_frames_as_it_has_statistics_of():
    with torch.device("meta"):
        network = build("lstm", ("rgb",), CLASSES)
    with pytest.raises(ValueError, match=r"50 frames, ConvNet\+LSTM in training takes 25"):
        network(torch.empty(2, 3, 50, 32, 32, device="meta"))


def test_statistics_of_every_step_are_measured_anew_before_a_test():
    network = random_network("lstm", ("rgb",))
    batch = clips(("lstm", ("rgb",)))
    norms = {name: module for name, module in network.named_modules() if isinstance(module, BatchNorm)}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    recompute_statistics(network, [batch])
    # The recurrent term of the first step is that of a state of zeros.
    first = [name for name, norm in norms.items() if not norm.running_mean.any()]
    assert first == ["lstm.recurrent_norm.of_step.0"]
    assert not [name for name, norm in norms.items() if torch.equal(norm.running_mean, before[name])]


def test_batches_of_all_processes_are_normalised_with_the_same_scales_and_offsets(small_lstm, tmp_path):
    """One process alone must compute what it computes without the others."""
    x = random_values(6, 4, 7).double()
    state = {name: tensor.clone() for name, tensor in small_lstm.state_dict().items()}
    expected = small_lstm.train()(x)
    updated = {name: tensor.clone() for name, tensor in small_lstm.state_dict().items()}
    small_lstm.load_state_dict(state)
    synchronise_batch_norm(small_lstm)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.testing.assert_close(small_lstm(x), expected)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(small_lstm.state_dict(), updated)


# Table 1 and figure 3


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("lstm", 8_950_720),
        ("c3d", 79_634_576),
        ("two-stream", 12_058_560),
        ("fused", 39_755_824),
        ("i3d", 25_358_016),
    ],
)
def test_parameters_are_those_of_table_1(architecture, count):
    assert parameters(architecture) == count
    assert abs(count / 1e6 - int(PAPER[architecture][0].removesuffix("M"))) < 1


def test_frames_and_footprints_are_those_of_table_1():
    """Where flow is seen by a test, its 249 pictures make the footprint 9.96 s; I3D's flow network sees each once."""
    expected = {architecture: list(row[1:]) for architecture, row in PAPER.items()}
    expected["two-stream"][3] = expected["fused"][3] = "9.96 s"
    expected["i3d"][2] = "250 rgb, 249 flow"
    assert {architecture: list(table_row(architecture)[1:]) for architecture in PAPER} == expected


def seen_along(network: I3D, name: str, axis: int, size: int) -> int:
    """How many inputs lie from the first to the last that one activation in the middle depends on, by trying."""
    extents = [9, 32, 32]
    extents[axis] = size

    def depends(first: int, stop: int) -> bool:
        video = torch.zeros(1, 3, *extents)
        video.narrow(2 + axis, first, stop - first).fill_(float("nan"))
        with torch.no_grad():  # in training mode the input's values are not checked
            activations = network.endpoint(video, "Mixed_5c" if name == "AveragePool" else name)
        if name == "AveragePool":
            activations = F.avg_pool3d(activations, (2, 1, 1) if axis == 0 else (2, 1, 7), 1)
        along = activations.isnan().any(dim=1).transpose(1, 1 + axis).flatten(2).any(dim=2)[0]
        return bool(along[len(along) // 2])

    stop_of_first = bisect_left(range(size + 1), True, key=lambda stop: depends(0, stop))
    after_last = bisect_left(range(size + 1), True, key=lambda first: not depends(first, size))
    return after_last - (stop_of_first - 1)


class _Passing(torch.nn.Module):
    """Instead of batch normalisation, which would spread what is not a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize(
    "name",
    [
        "Conv3d_1a_7x7",
        "MaxPool3d_2a_3x3",
        "Mixed_3b",
        pytest.param("MaxPool3d_5a_2x2", marks=pytest.mark.slow),
        pytest.param("AveragePool", marks=pytest.mark.slow),
    ],
)
def test_receptive_fields_are_what_activations_depend_on(name, axis):
    network = random_network("i3d", ("rgb",))
    for module in network.modules():
        if hasattr(module, "norm"):
            module.norm = _Passing()
    field = receptive_fields(network)[name]
    enough = max(2 * field.size[axis] + 2 * field.stride[axis], 32)
    assert seen_along(network, name, axis, enough) == field.size[axis]


def test_receptive_fields_beside_figure_3():
    with torch.device("meta"):
        fields = receptive_fields(I3D())
    assert list(fields) == [*I3D.ENDPOINTS, "AveragePool"]
    ours = {name: fields[name].size for name in FIGURE_3}
    # Behind the five modules of the fourth stage the figure counts one module less, of 8 frames and 32 pixels.
    module = [n - m for n, m in zip(fields["Mixed_4f"].size, fields["Mixed_4e"].size, strict=True)]
    assert module == [8, 32, 32]
    for name in ("MaxPool3d_5a_2x2", "AveragePool"):
        ours[name] = tuple(n - m for n, m in zip(ours[name], module, strict=True))
    assert ours == FIGURE_3
    assert fields["Mixed_5c"].stride == (8, 32, 32)


def test_command_prints_both_tables():
    done = CliRunner().invoke(table1_command)
    assert done.exit_code == 0, done.output
    assert re.search(r"^c3d +parameters +79M +79,634,576$", done.output, re.MULTILINE)
    assert re.search(r"^fused +frames in testing +25 rgb, 250 flow +25 rgb, 250 flow$", done.output, re.MULTILINE)
    assert re.search(r"^MaxPool3d_5a_2x2 +59 x 219 x 219 +67 x 251 x 251$", done.output, re.MULTILINE)
