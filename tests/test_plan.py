"""What a training run sees when: every clip once an epoch, whatever the batch size; the same for the same seed."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from train.plan import Plan

CLIP_FRAMES = np.array([250, 64, 65, 20, 250, 100, 9])


def seen(plan, steps):
    return [view for step in steps for view in plan.batch(step)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10, 20])
def test_every_epoch_sees_every_clip_once(batch_size):
    plan = Plan(CLIP_FRAMES, 64, batch_size)
    views = seen(plan, range(35))
    for epoch in range(35 * batch_size // 7):
        assert Counter(view.sample for view in views[7 * epoch : 7 * epoch + 7]) == Counter(range(7))


def test_the_sequence_depends_on_the_seed_and_not_on_the_batch_size_or_the_past():
    plan = Plan(CLIP_FRAMES, 64, 6, seed=3)
    assert seen(plan, range(10)) == seen(Plan(CLIP_FRAMES, 64, 20, seed=3), range(3))
    assert Plan(CLIP_FRAMES, 64, 6, seed=3).batch(9) == plan.batch(9)
    assert seen(Plan(CLIP_FRAMES, 64, 6, seed=4), range(10)) != seen(plan, range(10))


def test_epochs_differ_in_order_and_views():
    views = seen(Plan(CLIP_FRAMES, 32, 7), range(4))
    orders = [tuple(view.sample for view in views[i : i + 7]) for i in range(0, 28, 7)]
    assert len(set(orders)) == 4
    assert len({view.pictures[0] for view in views if view.sample == 0}) > 1


def test_windows_lie_inside_their_clips_and_reach_both_ends():
    views = seen(Plan(CLIP_FRAMES, 64, 7), range(3000))
    starts = {sample: [view.pictures[0] for view in views if view.sample == sample] for sample in range(7)}
    assert set(starts[2]) == {0, 1}
    assert (min(starts[0]), max(starts[0])) == (0, 250 - 64)
    for short in (1, 3, 6):
        assert set(starts[short]) == {0}
    # Uniform: the mean of 3000 draws from 0…186 lies within four standard errors.
    assert abs(np.mean(starts[0]) - 93) < 4 * 54 / np.sqrt(3000)


def test_crops_and_flips_are_spread_evenly():
    views = seen(Plan(CLIP_FRAMES, 64, 7), range(1000))
    for values in ([view.top for view in views], [view.left for view in views]):
        assert 0 <= min(values) < max(values) < 1
        assert abs(np.mean(values) - 0.5) < 4 * 0.29 / np.sqrt(7000)
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 4 * 0.5 / np.sqrt(7000)
    assert abs(np.corrcoef([view.top for view in views], [view.left for view in views])[0, 1]) < 0.05
    assert not any(view.flip for view in seen(Plan(CLIP_FRAMES, 64, 7, flip=False), range(10)))


def test_flips_do_not_change_the_rest():
    with_flips, without = (seen(Plan(CLIP_FRAMES, 64, 7, flip=flip), range(10)) for flip in (True, False))
    assert [(v.sample, v.pictures[0], v.top) for v in with_flips] == [(v.sample, v.pictures[0], v.top) for v in without]


def test_the_plan_of_today_is_that_of_tomorrow():
    """Golden: a run that is resumed after an upgrade must find the sequence that it began with."""
    views = Plan(CLIP_FRAMES, 64, 3, seed=1).batch(4)
    assert [(view.sample, view.pictures[0], round(view.top, 6), view.flip) for view in views] == [
        (6, 0, 0.013325, True),
        (5, 4, 0.5046, False),
        (5, 20, 0.03366, False),
    ]


def test_epochs_are_counted():
    plan = Plan(CLIP_FRAMES, 64, 2)
    assert plan.epoch(0) == 0
    assert plan.epoch(7) == 2


def test_planning_needs_no_torch():
    code = "import sys, train.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_large_plan_is_quick_to_ask_for_any_step():
    plan = Plan(np.full(650_000, 250), 64, 384)
    assert len({view.sample for view in plan.batch(1_000_000)}) > 300
