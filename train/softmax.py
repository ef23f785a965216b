"""A softmax classifier of features, trained as the last layer of a network is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.schedule import Plateau, Schedule, learning_rate, steps_to_evaluation

MOMENTUM = 0.9  # paper, §2.5
SMALLEST_DEVIATION = 0.01  # of the mean one: features that hardly vary would be rounding errors, blown up


@dataclass(frozen=True)
class Labelled:
    """Features of clips, [N, features] float32, and their classes, [N] int64."""

    features: Tensor
    classes: Tensor

    def take(self, chosen: np.ndarray) -> "Labelled":
        """Those where a [N] array of bool is true."""
        mask = torch.from_numpy(chosen)
        return Labelled(self.features[mask], self.classes[mask])


@dataclass(frozen=True)
class Softmax:
    """A linear layer of features: weight [classes, features] and bias [classes], float32."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """[N, features] → [N, classes]."""
        return F.linear(features, self.weight, self.bias)

    def judged(self, clips: Labelled) -> tuple[float, float]:
        """Share of clips that it has right, and the mean loss."""
        logits = self.logits(clips.features)
        right = (logits.argmax(1) == clips.classes).float().mean()
        return float(right), float(F.cross_entropy(logits, clips.classes))


@dataclass(frozen=True)
class Training:
    """How a softmax is trained: as i3d-train trains a network, but for what features leave nothing to.

    Attributes:
        steps: of SGD with momentum.
        batch_size: clips a step.
        schedule: of the learning rate.
        patience: of a plateau's schedule.
        evaluate_every: steps; None is as i3d-train has it by default.
        weight_decay: of the weights.
        seed: of the order of the clips.
    """

    steps: int
    batch_size: int
    schedule: Schedule
    patience: int
    evaluate_every: int | None
    weight_decay: float
    seed: int


def train_softmax(clips: Labelled, num_classes: int, training: Training, held_out: Labelled | None) -> Softmax | None:
    """Train a softmax classifier of features.

    It begins with zeros. Features are standardised for it by the mean and deviation of each over the clips, so that one
    range of learning rates does for all networks; the weights that are returned take features as they are.

    Args:
        clips: to train on.
        num_classes: how many classes.
        training: how.
        held_out: a plateau's schedule sees the loss of these; the training loss where there are none.

    Returns:
        The classifier; None where it diverged: its weights, or its loss on those that it is judged on, are not finite.
    """
    mean, deviation = clips.features.mean(0), clips.features.std(0, correction=0)
    scale = deviation.clamp_min(max(SMALLEST_DEVIATION * float(deviation.mean()), torch.finfo().tiny))
    x = (clips.features - mean) / scale
    layer = nn.Linear(x.shape[1], num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)

    def found() -> Softmax:
        weight = layer.weight.detach() / scale
        return Softmax(weight, layer.bias.detach() - weight @ mean)

    optimizer = torch.optim.SGD(
        layer.parameters(), training.schedule.base_rate, momentum=MOMENTUM, weight_decay=training.weight_decay
    )
    plateau = Plateau(training.patience)
    every = training.evaluate_every or steps_to_evaluation(len(x), training.batch_size)
    losses: list[float] = []
    for step, batch in zip(range(training.steps), _batches(len(x), training.batch_size, training.seed), strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(training.schedule, step, plateau.drops)
        loss = F.cross_entropy(layer(x[batch]), clips.classes[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % every == 0:
            seen = sum(losses) / len(losses) if held_out is None else found().judged(held_out)[1]
            if not math.isfinite(seen):
                return None
            if training.schedule.name == "plateau" and step >= training.schedule.warm_up_steps:
                plateau.see(seen)
            losses.clear()
    softmax = found()
    finite = softmax.weight.isfinite().all() and softmax.bias.isfinite().all()
    return softmax if finite and math.isfinite(softmax.judged(held_out or clips)[1]) else None


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Numbers of clips, batch after batch without end: each epoch in a new order, no gap between two."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]
