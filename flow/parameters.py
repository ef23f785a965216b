"""Parameters of TV-L1 and what follows from them alone."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

# OpenCV makes no pyramid level with a shorter side.
MINIMUM_SIDE_PIXELS = 16
SMALLEST, LARGEST = 1e-6, 1e6  # of tau, lambda and theta; far beyond what has a meaning
# What a change of one iteration counts in, px²: so a sum of whole units does not depend on its order.
CHANGE_UNIT = 2.0**-24


@dataclass(frozen=True)
class TVL1Params:
    """Parameters of TV-L1, with the names and the defaults of `cv2.optflow.DualTVL1OpticalFlow`.

    Raises:
        ValueError: a value with which the method means nothing.
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    scales: int = 5
    warps: int = 5
    epsilon: float = 0.01
    inner_iterations: int = 30
    outer_iterations: int = 10
    scale_step: float = 0.8
    gamma: float = 0.0
    median_filtering: int = 5

    def __post_init__(self) -> None:
        for name in ("scales", "warps", "inner_iterations", "outer_iterations", "median_filtering"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or not 1 <= int(value) <= 10_000:
                raise ValueError(f"{name} {value!r}: must be a whole number from 1 to 10,000")
        for name in ("tau", "lambda_", "theta", "epsilon", "scale_step", "gamma"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name} {value!r}: must be a finite number")
        # The solver works with these as float32, where they must not become 0 or infinite.
        for name in ("tau", "lambda_", "theta"):
            if not SMALLEST <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} {getattr(self, name)}: must be from {SMALLEST:g} to {LARGEST:g}")
        for name in ("epsilon", "gamma"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} {getattr(self, name)}: must be from 0 to {LARGEST:g}")
        if not 0 < self.scale_step < 1:
            raise ValueError(f"scale_step {self.scale_step}: must be between 0 and 1")
        if self.median_filtering not in (1, 3, 5):
            raise ValueError(f"median_filtering {self.median_filtering}: must be 1 (none), 3 or 5")


# Named schedules. The first is the default, OpenCV's own and nearest to the truth. "tvl1-flat" is the schedule
# of OpenCV's CUDA version: all iterations of a warp in a row, no median. What it saves, and how far it is from the
# default and from the truth, `make bench` measures.
VARIANTS = {
    "tvl1": TVL1Params(),
    "tvl1-flat": TVL1Params(inner_iterations=300, outer_iterations=1, median_filtering=1),
}


def change_limit(params: TVL1Params, height: int, width: int) -> int:
    """The summed squared change at which iterations stop, in `CHANGE_UNIT`; −1 for never."""
    units = float(params.epsilon) ** 2 * height * width / CHANGE_UNIT
    return math.floor(min(units, 2.0**62)) if params.epsilon else -1


def pyramid_sizes(height: int, width: int, params: TVL1Params) -> list[tuple[int, int]]:
    """The (height, width) of each level, the picture's own first; sides round half to even, as OpenCV's do."""
    sizes = [(height, width)]
    while len(sizes) < params.scales:
        smaller = (round(sizes[-1][0] * params.scale_step), round(sizes[-1][1] * params.scale_step))
        if min(smaller) < MINIMUM_SIDE_PIXELS:
            break
        sizes.append(smaller)
    return sizes
