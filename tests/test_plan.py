"""What a training run sees when: every clip once an epoch, whatever the batch size; the same for the same seed."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from train.plan import WINDOW_SHARDS, Plan, Share
from train.samplers import RandomWindow, window_of

CLIP_FRAMES = np.array([250, 64, 65, 20, 250, 100, 9])


def plan_of(batch_size, frames=64, clip_frames=CLIP_FRAMES, samples_per_shard=3, **options):
    shard_of = np.arange(len(clip_frames)) // samples_per_shard
    return Plan(clip_frames, shard_of, RandomWindow(window_of("i3d", ("rgb",), frames)), batch_size, **options)


def seen(plan, steps):
    return [view for step in steps for view in plan.batch(step)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10, 20])
def test_every_epoch_sees_every_clip_once(batch_size):
    plan = plan_of(batch_size)
    views = seen(plan, range(35))
    for epoch in range(35 * batch_size // 7):
        assert Counter(view.sample for view in views[7 * epoch : 7 * epoch + 7]) == Counter(range(7))


def test_the_sequence_depends_on_the_seed_and_not_on_the_batch_size_or_the_past():
    plan = plan_of(6, seed=3)
    assert seen(plan, range(10)) == seen(plan_of(20, seed=3), range(3))
    assert plan_of(6, seed=3).batch(9) == plan.batch(9)
    assert seen(plan_of(6, seed=4), range(10)) != seen(plan, range(10))


def test_epochs_differ_in_order_and_views():
    views = seen(plan_of(7, 32), range(4))
    orders = [tuple(view.sample for view in views[i : i + 7]) for i in range(0, 28, 7)]
    assert len(set(orders)) == 4
    assert len({view.pictures["rgb"][0] for view in views if view.sample == 0}) > 1


def test_windows_lie_inside_their_clips_and_reach_both_ends():
    views = seen(plan_of(7), range(3000))
    starts = {sample: [view.pictures["rgb"][0] for view in views if view.sample == sample] for sample in range(7)}
    assert set(starts[2]) == {0, 1}
    assert (min(starts[0]), max(starts[0])) == (0, 250 - 64)
    for short in (1, 3, 6):
        assert set(starts[short]) == {0}
    # Uniform: the mean of 3000 draws from 0…186 lies within four standard errors.
    assert abs(np.mean(starts[0]) - 93) < 4 * 54 / np.sqrt(3000)


def test_crops_and_flips_are_spread_evenly():
    views = seen(plan_of(7), range(1000))
    for values in ([view.top for view in views], [view.left for view in views]):
        assert 0 <= min(values) < max(values) < 1
        assert abs(np.mean(values) - 0.5) < 4 * 0.29 / np.sqrt(7000)
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 4 * 0.5 / np.sqrt(7000)
    assert abs(np.corrcoef([view.top for view in views], [view.left for view in views])[0, 1]) < 0.05
    assert not any(view.flip for view in seen(plan_of(7, flip=False), range(10)))


def test_flips_do_not_change_the_rest():
    with_flips, without = (seen(plan_of(7, flip=flip), range(10)) for flip in (True, False))
    assert [(v.sample, v.pictures, v.top) for v in with_flips] == [(v.sample, v.pictures, v.top) for v in without]


def test_the_plan_of_today_is_that_of_tomorrow():
    """Golden: a run that is resumed after an upgrade must find the sequence that it began with."""
    views = plan_of(3, seed=1).batch(4)
    assert [(view.sample, view.pictures["rgb"][0], round(view.top, 6), view.flip) for view in views] == [
        (6, 0, 0.013325, True),
        (5, 4, 0.5046, False),
        (5, 20, 0.03366, False),
    ]


def test_epochs_are_counted():
    plan = plan_of(2)
    assert plan.epoch(0) == 0
    assert plan.epoch(7) == 2


def test_planning_needs_no_torch():
    code = "import sys, train.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (2, 3), (6, 2), (12, 1), (3, 4)])
def test_ranks_and_parts_deal_out_the_same_batch(ranks, parts):
    plan = plan_of(12)
    shares = [plan.batch(5, Share(rank, ranks, parts), part) for rank in range(ranks) for part in range(parts)]
    assert {len(share) for share in shares} == {12 // ranks // parts}
    assert [view for share in shares for view in share] == plan.batch(5)


def test_the_order_spans_the_dataset_and_reads_stay_within_a_window_of_shards():
    shards, per_shard = 5 * WINDOW_SHARDS, 4
    plan = plan_of(8, clip_frames=np.full(shards * per_shard, 64), samples_per_shard=per_shard)
    orders = []
    for epoch in (0, 1):
        steps = range(epoch * shards * per_shard // 8, (epoch + 1) * shards * per_shard // 8)
        order = [view.sample // per_shard for view in seen(plan, steps)]
        for window in range(5):
            there = order[window * WINDOW_SHARDS * per_shard : (window + 1) * WINDOW_SHARDS * per_shard]
            assert len(set(there)) == WINDOW_SHARDS
            assert there != sorted(there)
            assert set(there) == set(plan.shards_of_window(steps[0] + window * WINDOW_SHARDS * per_shard // 8))
        orders.append(order)
    assert orders[0] != orders[1]
    first, second = (set(order[: WINDOW_SHARDS * per_shard]) for order in orders)
    assert len(first & second) < WINDOW_SHARDS / 2  # other shards together each time


def test_the_next_window_is_known_before_it_is_reached():
    plan = plan_of(4, clip_frames=np.full(3 * WINDOW_SHARDS, 64), samples_per_shard=1)
    steps = 3 * WINDOW_SHARDS // 4
    for step in (0, 10, steps - 1):  # from the last window on, the first one of the next epoch
        assert plan.shards_of_window(step, ahead=1) == plan.shards_of_window(step + WINDOW_SHARDS // 4)


@pytest.mark.slow
def test_twelve_ranks_see_650_000_clips_exactly_once_in_equal_steps():
    samples, batch_size, ranks = 650_000, 1200, 12
    plan = plan_of(batch_size, clip_frames=np.full(samples, 250), samples_per_shard=250)
    counts, views = np.zeros(samples, int), []
    for rank in range(ranks):
        views.append(0)
        for step in range(-(-samples // batch_size)):
            mine = plan.batch(step, Share(rank, ranks))
            counts[[view.sample for view in mine]] += 1
            views[-1] += len(mine)
    assert len(set(views)) == 1
    assert set(counts.tolist()) == {1, 2}
    assert (counts == 2).sum() == batch_size * -(-samples // batch_size) - samples  # the next epoch's first


def test_a_large_plan_is_quick_to_ask_for_any_step():
    plan = plan_of(384, clip_frames=np.full(650_000, 250), samples_per_shard=250)
    assert len({view.sample for view in plan.batch(1_000_000)}) > 300
