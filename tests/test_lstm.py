"""The recurrent layer of ConvNet+LSTM, and its batch normalisation."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model import BatchNorm, build, synchronise_batch_norm
from model.lstm import BatchNormLSTM
from tests.networks import CLASSES, clips, random_network, random_values
from train.batch_norm import recompute_statistics


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


def test_lstm_keeps_its_cell_in_float32(small_lstm):
    lstm, x = small_lstm.float().eval(), random_values(6, 9, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = lstm(x)
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, reference_lstm(lstm, x, trained=False), rtol=0, atol=0.02)


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
