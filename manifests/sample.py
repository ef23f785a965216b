"""What one stored sample is: its members, its metadata, and the specification that decides what its bytes mean.

A sample `KEY` is `KEY.rgb.mp4`, `KEY.flow.mp4` (where the dataset has flow), `KEY.json` and, where it has a label,
`KEY.cls`. Keys hold no dot, so that WebDataset, which splits names at the first dot, names the fields as we do.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from manifests.files import canonical_json

FORMAT_VERSION = 1
FRAME_RATE = 25
SHORT_SIDES = range(32, 1081, 2)  # of stored pictures, in pixels
MINIMUM_FRAMES = 9  # the fewest that I3D takes: its last pool wants two time steps, 8 frames apart

RGB = "rgb.mp4"
FLOW = "flow.mp4"
METADATA = "json"
CLASS = "cls"


class FormatError(ValueError):
    """Stored data that this version does not know or that contradicts itself."""


@dataclass(frozen=True)
class RgbCoding:
    """How RGB is stored: H.264, yuv420p, BT.601 limited range, constant `frame_rate`, one x264 thread."""

    frame_rate: int = FRAME_RATE
    short_side: int = 256
    resize_kernel: str = "swscale-bilinear"
    crf: int = 18
    # Short closed groups of pictures and no deblocking or CABAC: random 64-frame windows decode several times faster.
    group_of_pictures: int = 16
    preset: str = "medium"
    tune: str = "fastdecode"


@dataclass(frozen=True)
class FlowCoding:
    """How flow is made and stored: TV-L1 on the luma of the decoded stored RGB, H.264 grey full range, x over y.

    Code c stands for (c − 128)·bound/127 pixels a frame: zero motion decodes to exactly zero (see `flow.coding`).
    """

    variant: str = "tvl1"
    variant_version: str = "opencv-5.0"  # whose algorithm it is
    parameters: dict[str, float] = field(default_factory=dict)
    bound_pixels: int = 20
    crf: int = 24
    group_of_pictures: int = 16
    preset: str = "medium"
    tune: str = "fastdecode"


# What two flows must share to mean the same; how they are stored and which backend computed them may differ.
FLOW_MEANING = ("variant", "variant_version", "parameters", "bound_pixels")


def flow_meaning(flow: dict[str, Any] | None) -> dict[str, Any] | None:
    """What flow means, from a specification's or a sample's `flow` as JSON; None without flow."""
    return None if flow is None else {name: flow[name] for name in FLOW_MEANING}


@dataclass(frozen=True)
class Specification:
    """Everything that decides what a dataset's stored bytes mean; machines and backends are not part of it."""

    classes_name: str
    classes_sha256: str
    rgb: RgbCoding = RgbCoding()
    flow: FlowCoding | None = None
    samples_per_shard: int = 128
    seed: int = 0
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON values."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The specification's name: a hash of all that it says."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()[:16]


def specification_from_json(value: dict[str, Any]) -> Specification:
    """Read a specification back.

    Raises:
        FormatError: a format version or a field that this version does not know.
    """
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(f"format version {version!r}: this program reads version {FORMAT_VERSION}")
    try:
        flow = value["flow"]
        rgb = RgbCoding(**value["rgb"])
        if type(rgb.short_side) is not int or rgb.short_side not in SHORT_SIDES:
            raise ValueError(f"short side {rgb.short_side!r}, not an even number of pixels from 32 to 1080")
        return Specification(**{**value, "rgb": rgb, "flow": FlowCoding(**flow) if flow is not None else None})
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"not a specification of format version {FORMAT_VERSION}: {error}") from error


def _brief(value: Any) -> str:
    return str(value.get("variant", "other")) if isinstance(value, dict) else repr(value)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two specifications (as JSON) differ, as `name: old → new`."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {_brief(before)} → {_brief(after)}")
    return found
