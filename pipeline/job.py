"""What one run does, the same for every clip, and its plan: the clips, written down in parts."""

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from manifests.classes import ClassList
from manifests.clip import Clip
from manifests.files import in_bucket, names_in, write_file
from manifests.sample import Specification
from pipeline.fetch import Source
from pipeline.generations import SCRATCH, scratch_prefix
from pipeline.shards import FinishedClips

CLIPS_IN_A_PART = 1000
_reading = threading.Lock()


class TooManyFailures(RuntimeError):
    """More clips of a run failed than it was to bear."""

    def __init__(self, failed: int, allowed: int) -> None:
        super().__init__(f"{failed} clips of this run failed, more than --max-failures {allowed}")


@dataclass(frozen=True)
class Job:
    """What one run does, the same for every clip: where from, where to, and what the bytes shall be."""

    output: Path
    sources: tuple[Source, ...]
    specification: Specification
    classes: ClassList
    generation: int
    parent: str | None
    archives: tuple[tuple[str, ...], ...] = ()  # to read before any other source is asked, wave after wave
    run: str = ""  # tells runs apart that work on the same output; nothing that is stored depends on it
    lease: str | None = None  # who holds the output, where that is a bucket
    max_failures: int | None = None  # with more, a run that nobody waits for ends as failed, once it has published

    @property
    def finished(self) -> FinishedClips:
        """The finished clips of the run's specification."""
        return FinishedClips.of(self.output, self.specification)

    @property
    def scratch(self) -> Path:
        """Folder of this machine for what is being worked on; the next run here removes what is left in it."""
        return Path(tempfile.gettempdir()) if in_bucket(self.output) else self.output / SCRATCH

    @property
    def plan(self) -> Path:
        """Folder of the clips to work on, in parts."""
        return self.output / SCRATCH / "plan"


def write_plan(clips: list[Clip], job: Job) -> list[str]:
    """Write down what is to be done, in parts, and give the parts' names.

    A list of clips inside the job would be too much for what runs it: Dataflow takes 10 MB, a few ten thousand clips.
    """
    parts = []
    for number, start in enumerate(range(0, len(clips), CLIPS_IN_A_PART)):
        parts.append(f"{number:06d}.jsonl")
        part = (json.dumps(asdict(clip)) + "\n" for clip in clips[start : start + CLIPS_IN_A_PART])
        write_file(job.plan / parts[-1], "".join(part).encode())
    return parts


def read_part(part: str, job: Job) -> Iterator[Clip]:
    """The clips of one part of the plan."""
    return _clips(job.plan / part)


def _clips(part: Path) -> Iterator[Clip]:
    for line in part.read_bytes().splitlines():
        fields = json.loads(line)
        yield Clip(**{**fields, "memberships": tuple(fields["memberships"])})


def wanted_clips(plan: Path, run: str) -> dict[str, Clip]:
    """All clips of a run's plan: which of them an archive has is seen only while it is read."""
    with _reading:  # once, whoever asks at the same time
        return _wanted_clips(plan, run)


@lru_cache(maxsize=1)
def _wanted_clips(plan: Path, run: str) -> dict[str, Clip]:
    del run  # that the plan of another run is not taken for this one's
    return {clip.key: clip for part in names_in(plan) for clip in _clips(plan / part)}


@contextmanager
def scratch_folder(job: Job) -> Iterator[Path]:
    """A folder of this machine while the block runs."""
    job.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=scratch_prefix(job.output)) as folder:
        yield Path(folder)
