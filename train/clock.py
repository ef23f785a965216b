"""Where the time of loading goes."""

import time
from dataclasses import dataclass, field
from typing import Literal

Work = Literal["read", "decode", "augment", "copy"]
WORK: tuple[Work, ...] = ("read", "decode", "augment", "copy")


@dataclass
class Clock:
    """Seconds by what they went to, and bytes read. Plain numbers, so that a worker can send it along with a batch."""

    seconds: dict[Work, float] = field(default_factory=lambda: dict.fromkeys(WORK, 0.0))
    bytes: int = 0
    last: float = field(default_factory=time.perf_counter)

    def lap(self, work: Work) -> None:
        """The time since the last call went to this."""
        now = time.perf_counter()
        self.seconds[work] += now - self.last
        self.last = now

    def add(self, other: "Clock") -> None:
        """Count what another has noted."""
        for work, seconds in other.seconds.items():
            self.seconds[work] += seconds
        self.bytes += other.bytes
