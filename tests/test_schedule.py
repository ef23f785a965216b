"""The learning rate of every step."""

import io
import math
from itertools import groupby, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.schedule import RELEASED_STEPS, SCHEDULES, Plateau, Schedule, learning_rate, rate_of_batch, schedule_steps

RELEASED = {
    "rgb": [(0, 0.1), (97_000, 0.01), (108_000, 0.001)],
    "flow": [(0, 0.1), (97_000, 0.01), (104_500, 0.001), (115_000, 0.1), (140_000, 0.01), (150_000, 0.001)],
}


def rates(schedule, steps=None):
    return [learning_rate(schedule, step) for step in range(steps or schedule.steps)]


def stretches(values):
    """The first step and the rate of each stretch of equal rates."""
    found, step = [], 0
    for rate, group in groupby(values):
        found.append((step, rate))
        step += len(list(group))
    return found


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_the_released_rates(stream):
    schedule = Schedule("released", rate_of_batch(384), steps=RELEASED_STEPS[stream], stream=stream)
    assert stretches(rates(schedule)) == RELEASED[stream]


@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize("length", [23, 31, 46, 115, 155, 230, 310, 1150, 1550, 7919])
def test_released_rates_scaled_change_at_the_first_step_that_is_not_before_the_bound(stream, length):
    found = stretches(rates(Schedule("released", 0.4, steps=length, stream=stream)))
    bounds = {}  # in integers, rounded up; of bounds that fall on one step the last counts
    for step, rate in RELEASED[stream]:
        bounds[-(-step * length // RELEASED_STEPS[stream])] = round(math.log10(0.1 / rate))
    assert found == [(step, 0.4 / 10**power) for step, power in bounds.items() if step < length]


def test_bounds_that_floats_miss():
    # 97,000 / 115,000 · 115 is 97.00000000000001 in floats: rounded up, the drop would come a step late.
    assert stretches(rates(Schedule("released", 0.1, steps=115)))[1] == (97, 0.01)
    assert stretches(rates(Schedule("released", 0.1, steps=155, stream="flow")))[3] == (115, 0.1)
    assert stretches(rates(Schedule("released", 0.1, steps=310, stream="flow")))[2] == (209, 0.001)


def test_rates_are_in_proportion_to_the_batch():
    assert [rate_of_batch(batch) for batch in (384, 192, 96, 6)] == [0.1, 0.05, 0.025, 0.1 / 64]


def test_a_cosine_falls_from_the_whole_rate_to_nearly_none():
    found = rates(Schedule("cosine", 0.2, steps=1000))
    assert found[0] == 0.2
    assert found[500] == pytest.approx(0.1)
    assert found[250] == pytest.approx(0.2 * (0.5 + math.sqrt(0.5) / 2))
    assert all(before > after > 0 for before, after in pairwise(found))
    assert found[-1] < 0.2 * 3e-6


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_rises_in_a_line_and_the_schedule_begins_after_it(name):
    steps = schedule_steps(name, 110)
    warm = rates(Schedule(name, 0.3, warm_up_steps=10, steps=steps), 110)
    assert warm[:10] == pytest.approx([0.3 * (step + 1) / 11 for step in range(10)])
    assert warm[10:] == rates(Schedule(name, 0.3, steps=schedule_steps(name, 100)), 100)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(SCHEDULES),
    stream=st.sampled_from(["rgb", "flow"]),
    length=st.integers(1, 10**9),
    share=st.floats(0, 1),
    warm=st.floats(0, 0.99),
    rate=st.floats(1e-8, 10),
)
def test_no_rate_is_above_the_rate_or_below_none(name, stream, length, share, warm, rate):
    schedule = Schedule(name, rate, int(warm * length), schedule_steps(name, length), stream)
    assert 0 < learning_rate(schedule, min(int(share * length), length - 1)) <= rate


def test_a_plateau_has_no_length():
    assert schedule_steps("plateau", 100) is None
    assert (schedule_steps("released", 100), schedule_steps("cosine", 100)) == (100, 100)
    assert learning_rate(Schedule("plateau", 0.1), 10**9) == 0.1


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_plateau_drops_when_torchs_does(patience):
    losses = torch.rand(400, generator=torch.Generator().manual_seed(patience)).cumsum(0).neg().tolist()
    losses = [loss + 3 * math.sin(number) for number, loss in enumerate(losses[:40])] + [1.0, 1.0, 0.5, 0.5, 0.5] * 4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = ReduceLROnPlateau(optimizer, factor=0.1, patience=patience - 1, threshold=0.0, eps=0.0)
    plateau, schedule = Plateau(patience), Schedule("plateau", 1.0)
    for loss in losses:
        theirs.step(loss)
        plateau.see(loss)
        assert learning_rate(schedule, 7, plateau.drops) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert plateau.drops > 2
    assert learning_rate(schedule, 7, 10**6) >= 0


def test_a_loss_that_is_as_low_as_before_is_no_new_lowest():
    plateau = Plateau(2)
    for loss in (1.0, 1.0, 1.0):
        plateau.see(loss)
    assert plateau.drops == 1


def test_a_plateau_goes_on_from_its_state():
    losses = [3.0, 2.0, 2.5, 2.0, 1.5, 1.6, 1.7, 1.8, 1.9, 1.4]
    whole = Plateau(2)
    for loss in losses:
        whole.see(loss)
    for cut in range(len(losses)):
        first, second, file = Plateau(2), Plateau(2), io.BytesIO()
        for loss in losses[:cut]:
            first.see(loss)
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        for loss in losses[cut:]:
            second.see(loss)
        assert second == whole


GOOD = {"best": 1.0, "waited": 1, "drops": 3}


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        None,
        {**GOOD, "waited": -1},
        {**GOOD, "waited": 2},
        {**GOOD, "drops": 1.5},
        {**GOOD, "drops": True},
        {**GOOD, "drops": "3"},
        {**GOOD, "best": math.nan},
        {**GOOD, "best": "low"},
    ],
)
def test_a_damaged_state_of_a_plateau_is_refused(state):
    plateau = Plateau(2)
    with pytest.raises(ValueError, match="plateau"):
        plateau.load_state_dict(state)
    assert plateau == Plateau(2)
    plateau.load_state_dict(GOOD)
    assert plateau == Plateau(2, 1.0, 1, 3)


def test_a_loss_that_is_no_number_is_no_plateau():
    with pytest.raises(ValueError, match="nan"):
        Plateau(2).see(math.nan)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "step"}, "'step' is none of plateau, released, cosine"),
        ({"base_rate": 0.0}, "learning rate 0.0"),
        ({"base_rate": math.inf}, "learning rate inf"),
        ({"warm_up_steps": -1}, "-1"),
        ({"warm_up_steps": 100}, "none of 100"),
        ({"steps": None}, "is scaled"),
        ({"name": "plateau"}, "no length"),
    ],
)
def test_what_makes_no_schedule_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Schedule(**{"name": "cosine", "base_rate": 0.1, "steps": 100, **values})


@pytest.mark.parametrize("step", [-1, 100])
def test_steps_that_a_schedule_does_not_have_are_refused(step):
    with pytest.raises(ValueError, match=str(step)):
        learning_rate(Schedule("cosine", 0.1, steps=100), step)
