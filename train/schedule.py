"""The learning rate of every step. Steps are counted from 0: step 0 is a run's first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from model import Stream

ScheduleName = Literal["plateau", "released", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)

RELEASED_RATE = 0.1  # of DeepMind's training, with 64 replicas of 6 clips each
RELEASED_BATCH = 384
SHORTEST_EPOCH_STEPS = 100  # that evaluations take for one
RELEASED_STEPS: dict[Stream, int] = {"rgb": 115_000, "flow": 155_000}
# From which step on the released training divided its rate by which power of ten; flow's began anew at 115,000.
_RELEASED_POWERS: dict[Stream, tuple[tuple[int, int], ...]] = {
    "rgb": ((0, 0), (97_000, 1), (108_000, 2)),
    "flow": ((0, 0), (97_000, 1), (104_500, 2), (115_000, 0), (140_000, 1), (150_000, 2)),
}


def steps_to_evaluation(clips: int, batch_size: int) -> int:
    """How many steps lie between evaluations unless a user says so: an epoch.

    Of few clips it is 100 steps: a plateau would take noise for an end of learning and divide the rate to nothing, and
    testing would take longer than training.
    """
    return max(SHORTEST_EPOCH_STEPS, math.ceil(clips / batch_size))


def rate_of_batch(batch_size: int, rate: float = RELEASED_RATE) -> float:
    """A learning rate for batches of 384 clips as one for batches of another size: in proportion."""
    return batch_size / RELEASED_BATCH * rate


@dataclass(frozen=True)
class Schedule:
    """Which learning rate each step of a run has.

    Attributes:
        name: "plateau" (paper §2.5) divides the rate by 10 when the loss no longer falls, see `Plateau`; "released"
            is that of DeepMind's training of `stream`; "cosine" is half a wave from `base_rate` down towards 0.
        base_rate: the learning rate after the warm-up.
        warm_up_steps: over so many steps the rate rises in a line to `base_rate`. The schedule begins after them.
        steps: length of the run, which "released" and "cosine" are scaled to, less the warm-up; None for "plateau",
            which no length changes.
        stream: whose released schedule is meant.

    Raises:
        ValueError: values that make no schedule; names them.
    """

    name: ScheduleName
    base_rate: float
    warm_up_steps: int = 0
    steps: int | None = None
    stream: Stream = "rgb"

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule {self.name!r} is none of {', '.join(SCHEDULES)}")
        if not (math.isfinite(self.base_rate) and self.base_rate > 0):
            raise ValueError(f"learning rate {self.base_rate} must be a positive number")
        if self.warm_up_steps < 0:
            raise ValueError(f"a warm-up of {self.warm_up_steps} steps: 0 is none")
        if (self.steps is None) != (self.name == "plateau"):
            wanted = "has no length of its own" if self.name == "plateau" else "is scaled to a run's length"
            raise ValueError(f"the schedule {self.name!r} {wanted}, and that was given as {self.steps} steps")
        if self.steps is not None and self.warm_up_steps >= self.steps:
            raise ValueError(f"a warm-up of {self.warm_up_steps} steps leaves none of {self.steps} to the schedule")


def schedule_steps(name: ScheduleName, steps: int) -> int | None:
    """What the length of a run, `steps`, means to its schedule: `Schedule.steps`.

    It belongs to what a run computes: under "released" and "cosine" another length is other rates from the first step
    on, so a run that is resumed must keep it. Under "plateau" it is None, and a run may be resumed to go on further.
    """
    return None if name == "plateau" else steps


def learning_rate(schedule: Schedule, step: int, drops: int = 0) -> float:
    """The learning rate of a step.

    Args:
        schedule: of the run.
        step: how many steps are done before it.
        drops: of the run's `Plateau`; the other schedules have none.

    Raises:
        ValueError: a step before the first, or after the last where the schedule has one.
    """
    if step < 0 or (schedule.steps is not None and step >= schedule.steps):
        raise ValueError(f"step {step} is none of the {schedule.steps or ''} steps of a {schedule.name!r} schedule")
    done = step - schedule.warm_up_steps
    if done < 0:
        return schedule.base_rate * (step + 1) / (schedule.warm_up_steps + 1)
    if schedule.steps is None:
        return schedule.base_rate / 10.0 ** min(drops, 300)  # beyond, a float has no such power
    length = schedule.steps - schedule.warm_up_steps
    if schedule.name == "cosine":
        # (1 + cos 2x) / 2, which is not 0 at the last of a billion steps.
        return schedule.base_rate * math.cos(math.pi * done / (2 * length)) ** 2
    # In integers: no rounding moves a bound. Floats would, at lengths such as 23 steps.
    released = RELEASED_STEPS[schedule.stream]
    power = next(p for first, p in reversed(_RELEASED_POWERS[schedule.stream]) if done * released >= first * length)
    return schedule.base_rate / 10.0**power


@dataclass
class Plateau:
    """When the learning rate of a "plateau" schedule falls: after `patience` evaluations without a new lowest loss.

    Attributes:
        patience: evaluations in a row.
        best: the lowest loss so far.
        waited: evaluations since then, or since the last drop.
        drops: how often the rate was divided by 10.
    """

    patience: int
    best: float = math.inf
    waited: int = 0
    drops: int = 0

    def see(self, loss: float) -> None:
        """Take note of an evaluation's loss. Those of the warm-up do not belong here: its rates are low on purpose.

        Raises:
            ValueError: a loss that is no finite number.
        """
        if not math.isfinite(loss):
            raise ValueError(f"a loss of {loss} tells a schedule nothing")
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.waited = 0
            self.drops += 1

    def state_dict(self) -> dict[str, float]:
        """What the losses so far have changed, as plain numbers; `patience` is the user's."""
        return {"best": self.best, "waited": self.waited, "drops": self.drops}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            ValueError: no such state; nothing is changed.
        """
        try:
            best, waited, drops = float(state["best"]), state["waited"], state["drops"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not the state of a learning rate's plateau: {error!r}") from error
        counts = [count for count in (waited, drops) if type(count) is int and count >= 0]
        if len(counts) < 2 or math.isnan(best) or waited >= self.patience:
            raise ValueError(f"not the state of a learning rate's plateau of patience {self.patience}: {dict(state)}")
        self.best, self.waited, self.drops = best, waited, drops
