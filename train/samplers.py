"""Which pictures of a clip each architecture sees, in training and in a test (paper §2, table 1).

Pictures are counted in frames of 25 a second. Flow i is the motion from frame i to frame i + 1: N frames have N − 1
flows, and a window that holds both takes flow i with frame i. Where flow is seen, a clip is therefore as long as its
flows are. A clip shorter than a window starts over (§2.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from manifests.sample import MINIMUM_FRAMES
from model import Architecture, Stream
from train.plan import Pictures

I3D_FRAMES = 64


@dataclass(frozen=True)
class Window:
    """What a network sees at once.

    Attributes:
        frames: how much of a clip it reaches over.
        pictures: of each stream, counted from the window's first frame, which is one of them.
    """

    frames: int
    pictures: dict[Stream, range]

    def at(self, start: int, clip_frames: int) -> Pictures:
        """The pictures of a window from `start` on in a clip of so many frames, flows where flow is seen."""
        there = min(self.frames, clip_frames)
        return {
            stream: range(start, start + some.stop, some.step)
            if some[-1] < there
            else [start + number % there for number in some]
            for stream, some in self.pictures.items()
        }


def window_of(architecture: Architecture, streams: Sequence[Stream], i3d_frames: int = I3D_FRAMES) -> Window:
    """The window that a network is trained on.

    - "lstm": 25 pictures, every fifth (§2.1), of 5 seconds.
    - "c3d": 16 in a row (§2.2).
    - "two-stream": a frame and 10 flows, from that frame on (§2.3).
    - "fused": 5 frames 10 apart, and the 10 flows from each on (§2.3).
    - "i3d": 64 in a row (§2.4), or as many as are asked for.

    Args:
        architecture: whose.
        streams: which it takes.
        i3d_frames: of I3D, the only one that takes any number; fewer than 9 are repeated up to that.
    """
    match architecture:
        case "lstm":
            frames, rgb, flow = 125, range(0, 125, 5), range(0, 125, 5)
        case "c3d":
            frames, rgb, flow = 16, range(16), range(16)
        case "two-stream":
            frames, rgb, flow = 10, range(1), range(10)
        case "fused":
            frames, rgb, flow = 50, range(0, 50, 10), range(50)
        case "i3d":
            frames, rgb = i3d_frames, range(max(i3d_frames, MINIMUM_FRAMES))
            flow = rgb
    return Window(frames, {stream: rgb if stream == "rgb" else flow for stream in streams})


@dataclass(frozen=True)
class RandomWindow:
    """A window from a random start, for `train.plan`."""

    window: Window

    def __call__(self, clip_frames: int, draw: float) -> Pictures:
        """The pictures of a clip of so many frames, for a draw from 0 to 1."""
        start = int(draw * (clip_frames - min(self.window.frames, clip_frames) + 1))
        return self.window.at(start, clip_frames)


def whole_clip_windows(architecture: Architecture, streams: Sequence[Stream], clip_frames: int) -> list[Pictures]:
    """The windows whose predictions are averaged in a test on a whole clip.

    I3D sees the clip at once, and ConvNet+LSTM every fifth of its pictures, 50 of 10 seconds. The others see it window
    by window, as often as the clip's frames have room for one: 15 times 16 frames, 25 times 1 + 10, 5 times 5 + 50 of
    10 seconds. What is left after the last window is not seen; where flow is seen, of which there is one less, the
    last window may begin a frame earlier than its turn.

    Args:
        architecture: whose.
        streams: which it takes.
        clip_frames: of the clip; flows where flow is seen.
    """
    if architecture in ("i3d", "lstm"):
        step = 5 if architecture == "lstm" else 1
        wanted = clip_frames if architecture == "lstm" else max(clip_frames, MINIMUM_FRAMES)
        some = range(0, wanted, step)
        return [Window(clip_frames, dict.fromkeys(streams, some)).at(0, clip_frames)]
    window = window_of(architecture, streams)
    rgb_frames = clip_frames + 1 if "flow" in streams else clip_frames
    last = max(clip_frames - window.frames, 0)
    starts = [min(number * window.frames, last) for number in range(max(rgb_frames // window.frames, 1))]
    return [window.at(start, clip_frames) for start in starts]
