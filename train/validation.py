"""The test of a network in training: statistics measured anew, whole clips, every clip once, on all ranks."""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manifests.sample import FormatError
from model import Stream
from train.batch_norm import BATCHES, average_statistics, recompute_statistics
from train.decode import network_inputs
from train.evaluate import TOP, ClipResult, Protocol, Streams, evaluate
from train.loader import Bad, Batch, training_batches
from train.log import Log
from train.quarantine import Quarantine
from train.ranks import Ranks
from train.signals import Signals
from train.state import REMEDY, NonFiniteLossError, State, Task, save_network


class Stopped(Exception):
    """A signal came before the test was through: the next start begins it anew."""


def validate(state: State, task: Task, quarantine: Quarantine, signals: Signals, log: Log | None) -> dict[str, float]:
    """Test on whole clips, let the schedule see the loss, and write `model.pt` and `best.pt`; gives what was found.

    Without validation clips the schedule sees the mean training loss since the last time.

    Raises:
        Stopped: a rank has noted a signal.
        FormatError: no validation clip can be used.
        NonFiniteLossError: the weights or the loss are no numbers.
    """
    started, configuration, ranks, validation = time.monotonic(), task.configuration, task.ranks, task.validation
    _measure_statistics(state, task, signals)
    values = {"mean_loss": state.loss_sum / max(state.losses, 1), "lr": state.optimizer.param_groups[0]["lr"]}
    loss = values["mean_loss"]
    if validation is not None:
        streams = Streams({configuration.stream: state.network}, {}, task.classes, ranks.device)
        by_shard = np.argsort(validation.shard_of, kind="stable")  # so that a cache needs few shards at a time
        mine = validation.take(by_shard[ranks.rank :: ranks.count])
        results = evaluate(mine, streams, Protocol(configuration.crop), task.session.workers)
        shown = log.evaluating(results, len(mine)) if log else results
        values |= _totals(signals.until(shown), quarantine, ranks)
    if ranks.sum([signals.noted])[0]:
        raise Stopped
    if validation is not None:
        if "val_loss" not in values:
            raise FormatError(f"none of the {len(validation)} validation clips can be used; {quarantine.file} says why")
        loss = values["val_loss"]
    state.require_finite()
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the validation loss after step {state.step} is not finite. {REMEDY}")
    state.network.train()
    if state.step % configuration.evaluate_every == 0:  # not at an end between: going on later changes nothing
        known = validation is not None or state.losses  # else all samples were bad
        if known and configuration.schedule.name == "plateau" and state.step > configuration.schedule.warm_up_steps:
            state.plateau.see(loss)
        state.loss_sum, state.losses = 0.0, 0
    state.tested = state.step
    best = validation is not None and loss < state.best_loss
    state.best_loss = min(loss, state.best_loss) if validation is not None else state.best_loss
    if ranks.first:
        for name in ("model.pt", "best.pt") if best else ("model.pt",):
            save_network(task.folder / name, state.network, task)
    return {**values, "seconds": time.monotonic() - started}


def _measure_statistics(state: State, task: Task, signals: Signals) -> None:
    """Batch normalisation's statistics over what the last steps saw, averaged over the ranks."""
    crop, device, network = task.configuration.crop, task.ranks.device, state.network
    seen = range(max(0, state.step - BATCHES), state.step)
    batches = training_batches(task.samples, task.streams, task.plan, seen, crop, task.share, task.session.workers)
    taken = _as_many(signals.until(batches), task.ranks)
    recompute_statistics(network, (network_inputs(_good(batch), network, device) for batch in taken))
    average_statistics(network, task.ranks)


def _as_many(batches: Iterator[Batch], ranks: Ranks) -> Iterator[Batch]:
    """The batches until they end on any rank: one that had fewer would be waited for where they synchronise."""
    while True:
        batch = ranks.all_or_none(lambda: next(batches, None))
        if ranks.sum([batch is None])[0] or batch is None:
            return
        yield batch


def _good(batch: Batch) -> dict[Stream, Tensor]:
    """The pixels of a batch without those that stand for bad samples; all where fewer than two are left.

    Of a single clip some layers have but one value a channel, and that has no variance.
    """
    good = batch.weights > 0
    return {s: pixels[good] for s, pixels in batch.pixels.items()} if good.sum() > 1 else batch.pixels


def _totals(results: Iterator[ClipResult | Bad], quarantine: Quarantine, ranks: Ranks) -> dict[str, float]:
    """Mean loss and shares of clips right, over all ranks' clips; nothing where no clip could be tested."""
    sums, bad = [0.0, 0.0, 0.0, 0.0], []  # clips, losses, top-1, top-5
    for result in results:
        if isinstance(result, Bad):
            bad.append(result)
            continue
        assert result.class_index is not None  # `trainable_samples` has left none without
        loss = F.cross_entropy(result.joint[None], torch.tensor([result.class_index])).item()
        best = result.joint.topk(min(TOP, len(result.joint))).indices.tolist()
        found = (1.0, loss, float(result.class_index in best[:1]), float(result.class_index in best))
        sums = [a + b for a, b in zip(sums, found, strict=True)]
    quarantine.add(bad)
    count, *totals = ranks.sum(sums)
    names = ("val_loss", "val_top1", f"val_top{TOP}")
    return {name: total / count for name, total in zip(names, totals, strict=True)} if count else {}
