"""Stored videos as input of the networks: 8-bit pixels, cropped and mirrored; scaled to [−1, 1] on the device."""

import numpy as np
import torch
from torch import Tensor

from flow import decode_flow_codes
from flow.coding import STEPS, ZERO_CODE
from manifests.sample import FLOW, MINIMUM_FRAMES, RGB
from model import STREAM_CHANNELS, Stream
from pipeline.video import decode_rgb
from train.plan import View

CROP_PIXELS = 224
MEMBER_OF: dict[Stream, str] = {"rgb": RGB, "flow": FLOW}
_DECODER_OF = {"rgb": decode_rgb, "flow": decode_flow_codes}


def whole_clip(video: bytes, stream: Stream, crop: int = CROP_PIXELS, frames: int | None = None) -> np.ndarray:
    """A stored clip as it is tested (paper §3): all frames, centre crop; one of too few frames for I3D starts over.

    Args:
        video: the stored video of the stream.
        stream: which one it is.
        crop: side of the crop, in pixels.
        frames: take only so many from the middle of the clip; all by default.

    Returns:
        [T, crop, crop, C] uint8, C = 3 colours or the codes of flow's 2 components; at least 9 frames.

    Raises:
        ValueError: pictures smaller than the crop, or damaged flow.
        VideoError: damaged RGB.
    """
    pictures = _DECODER_OF[stream](video)
    if frames is not None and frames < len(pictures):
        start = (len(pictures) - frames) // 2
        pictures = pictures[start : start + frames]
    rows, columns = _room(pictures, crop)
    top, left = rows // 2, columns // 2
    return _looped(pictures[:, top : top + crop, left : left + crop], MINIMUM_FRAMES)


def training_window(video: bytes, stream: Stream, view: View, crop: int = CROP_PIXELS) -> np.ndarray:
    """A view of a stored clip as training sees it (paper §3); only the stretch of its pictures is decoded.

    Mirroring a clip negates its horizontal motion, too.

    Args:
        video: the stored video of the stream.
        stream: which one it is.
        view: pictures, crop and flip, from the plan.
        crop: side of the crop, in pixels.

    Returns:
        [T, crop, crop, C] uint8, as of `whole_clip`; T is the number of the view's pictures.

    Raises:
        ValueError: pictures smaller than the crop, or damaged flow.
        VideoError: damaged RGB.
    """
    first = min(view.pictures)
    pictures = _DECODER_OF[stream](video, first, max(view.pictures) + 1)
    rows, columns = _room(pictures, crop)
    top, left = int(view.top * (rows + 1)), int(view.left * (columns + 1))
    pictures = pictures[:, top : top + crop, left : left + crop]
    if view.flip:
        pictures = pictures[:, :, ::-1]
        if stream == "flow":
            # 128 + v to 128 − v. Code 0, beyond the coding's range, can come out of the lossy video; it counts as 1.
            x = 2 * ZERO_CODE - np.maximum(pictures[..., 0], 1).astype(np.int16)
            pictures = np.stack([x.astype(np.uint8), pictures[..., 1]], axis=-1)
    return np.ascontiguousarray(pictures[np.array(view.pictures) - first])


def blank_window(stream: Stream, frames: int, crop: int) -> np.ndarray:
    """What stands for a window that cannot be decoded: grey, no motion. [frames, crop, crop, C] uint8."""
    return np.full((frames, crop, crop, STREAM_CHANNELS[stream]), ZERO_CODE, np.uint8)


def network_input(pixels: Tensor, stream: Stream) -> Tensor:
    """Stored pixels as the network takes them, on whatever device they are.

    Args:
        pixels: [B, T, H, W, C] uint8.
        stream: which one it is.

    Returns:
        [B, C, T, H, W] in torch's default dtype, float32, channels last in memory: 0…255 mapped to −1…1, or ±bound of
        flow mapped to ±1 and no motion to 0.
    """
    x = pixels.permute(0, 4, 1, 2, 3).to(
        torch.get_default_dtype()
    )  # a view: what was [B, T, H, W, C] is channels_last_3d
    if stream == "rgb":
        return x / 127.5 - 1
    return (x - ZERO_CODE) / STEPS


def _room(pictures: np.ndarray, crop: int) -> tuple[int, int]:
    """By how many rows and columns [T, H, W, C] pictures are larger than the crop."""
    height, width = pictures.shape[1:3]
    if min(height, width) < crop:
        raise ValueError(f"pictures of {width}x{height} are smaller than the crop of {crop}x{crop} (--crop)")
    return height - crop, width - crop


def _looped(pictures: np.ndarray, frames: int) -> np.ndarray:
    """At least `frames` pictures: from the first on again after the last, as in the paper (§3)."""
    if len(pictures) < frames:
        pictures = pictures[np.arange(frames) % len(pictures)]
    return np.ascontiguousarray(pictures)
