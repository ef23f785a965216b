"""What `i3d-train --bench-data` prints."""

import pytest
import torch

from manifests.sample import FLOW
from tests import golden
from train.bench_data import bench_data
from train.loader import training_batches
from train.plan import Plan
from train.samplers import RandomWindow, window_of
from train.stream import open_samples, trainable_samples


@pytest.mark.parametrize("workers", [0, 2])
def test_every_clip_and_byte_is_counted(workers):
    samples = trainable_samples(open_samples(str(golden.DATASET), "train"), ("flow",))
    plan = Plan(
        samples.records["flow_frames"], samples.shard_of, RandomWindow(window_of("i3d", ("flow",), 9)), batch_size=3
    )
    batches = training_batches(samples, ("flow",), plan, range(5), 32, workers=workers)
    speed = bench_data(batches, torch.device("cpu"), seconds=1000)
    seen = [view.sample for step in range(1, 5) for view in plan.batch(step)]
    lengths = [len(sample.read((FLOW,))[FLOW]) for sample in samples]
    assert (speed.clips, speed.bytes_read) == (12, sum(lengths[number] for number in seen))
    assert sum(speed.shares.values()) == pytest.approx(1)
    assert all(speed.shares[work] > 0 for work in ("read", "decode", "augment"))
    assert "clips/s" in str(speed)
    assert "decode" in str(speed)


def test_it_ends_when_its_time_is_over():
    samples = trainable_samples(open_samples(str(golden.DATASET), "train"), ("rgb",))
    plan = Plan(
        samples.records["rgb_frames"], samples.shard_of, RandomWindow(window_of("i3d", ("rgb",), 9)), batch_size=1
    )
    batches = training_batches(samples, ("rgb",), plan, range(10**9), 32)
    speed = bench_data(batches, torch.device("cpu"), seconds=0.1)
    assert speed.seconds >= 0.1
    assert 1 <= speed.clips < 10_000
