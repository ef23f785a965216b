"""What a run says of itself: JSON lines, which are the truth, TensorBoard, a display or plain lines."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from manifests.files import write_file
from manifests.sample import FormatError

PLAIN_SECONDS = 15.0
T = TypeVar("T")


class Log:
    """The log of a run from `first_step` on; lines of later steps, which a killed run left, are taken out.

    Args:
        folder: of the run.
        first_step: steps that are done already.
        tested: the step of the last evaluation that is done already.
        steps: steps in all.
        batch_size: clips a step, for the rate.
    """

    def __init__(self, folder: Path, first_step: int, tested: int, steps: int, batch_size: int) -> None:
        file = folder / "metrics.jsonl"
        if file.exists():
            done = {False: first_step, True: tested}
            lines = [line for line in read_metrics(file) if line["step"] <= done["mean_loss" in line]]
            write_file(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file = file.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._steps, self._batch_size = steps, batch_size
        self._console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        words = TextColumn("{task.fields[words]}")
        self._progress = Progress(*columns, words, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("steps", total=steps, completed=first_step, words="")
        self._first_step, self._started = first_step, time.monotonic()
        self._said = self._started

    def __enter__(self) -> "Log":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._board.close()
        self._file.close()

    def step(self, step: int, values: dict[str, float]) -> None:
        """Note a step that is done: `lr`, `seconds`, `waiting_seconds`, `loss` unless all samples were bad, others."""
        self._write(step, values, "train")
        waiting = values["waiting_seconds"] / values["seconds"]
        rate = self._batch_size / values["seconds"]
        loss = f"{values['loss']:.3f}" if "loss" in values else "of no sample"
        words = f"loss {loss}  lr {values['lr']:.3g}  {rate:.1f} clips/s  waiting {waiting:.0%}"
        self._progress.update(self._task, completed=step, words=words)
        if time.monotonic() - self._said >= PLAIN_SECONDS or step == self._steps:
            self._plain(step, words)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Note what an evaluation after `step` steps found."""
        self._write(step, values, "evaluation")
        names = {"mean_loss": "training loss", "val_loss": "validation loss", "val_top1": "top-1", "val_top5": "top-5"}
        self.say(f"step {step}: " + "  ".join(f"{names[n]} {values[n]:.4f}" for n in names if n in values))

    def evaluating(self, items: Iterable[T], total: int) -> Iterator[T]:
        """Show the progress through `total` items."""
        task = self._progress.add_task("clips", total=total, words="evaluating")
        for number, item in enumerate(items, start=1):
            yield item
            self._progress.advance(task)
            if time.monotonic() - self._said >= PLAIN_SECONDS:
                self._plain(None, f"evaluating: {number}/{total} clips")
        self._progress.remove_task(task)

    def say(self, words: str) -> None:
        """Print a line above the display."""
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def _plain(self, step: int | None, words: str) -> None:
        self._said = time.monotonic()
        if self._console.is_terminal:
            return
        if step is not None and step > self._first_step:
            left = (self._said - self._started) / (step - self._first_step) * (self._steps - step)
            words = f"step {step}/{self._steps}  {words}  {timedelta(seconds=round(left))} left"
        self.say(words)

    def _write(self, step: int, values: dict[str, float], group: str) -> None:
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last one that a killed process left unfinished is not counted.

    Raises:
        FormatError: another line that is none of ours; names it.
    """
    values = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            value["step"] + 0  # a number
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{file}: line {number} is no metrics of a step: {error!r}") from error
        values.append(value)
    return values
