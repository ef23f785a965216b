"""Stored videos as input of the networks: 8-bit planes, cropped and mirrored; colours in [−1, 1] on the device.

A stored picture has brightness (Y) for every pixel and colour (U, V) for 2x2 of them. So it leaves a worker: in half
the bytes of RGB, and converted where that costs least. Crops therefore begin at even rows and columns, flow's as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flow import flow_pictures
from flow.coding import STEPS, ZERO_CODE
from manifests.sample import FLOW, RGB
from model import Network, Stream
from pipeline.video import yuv_pictures
from train.clock import Clock
from train.plan import View

Crops = Literal[1, 3]  # how many squares a test sees of each picture
CROP_PIXELS = 224
C3D_SIDE = 112
MEMBER_OF: dict[Stream, str] = {"rgb": RGB, "flow": FLOW}
_PICTURES_OF = {"rgb": yuv_pictures, "flow": flow_pictures}
# Limited range: Y of black and its steps to white, U and V of grey and their steps from −0.5 to 0.5.
_BLACK, _LUMA_STEPS, _GREY, _CHROMA_STEPS = 16, 219, 128, 224
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # their shares in Y, as BT.601 has them


def whole_clip(video: bytes, stream: Stream, crop: int = CROP_PIXELS, some: range | None = None) -> np.ndarray:
    """A stored clip as it is tested (paper §2.5): all frames, centre crop.

    Args:
        video: the stored video of the stream.
        stream: which one it is.
        crop: side of the crop, in pixels; even.
        some: take only these pictures; all by default.

    Returns:
        [T, rows, crop] uint8: of RGB, Y over U beside V, rows = 3/2 · crop; of flow, the codes of
        x over those of y, rows = 2 · crop.

    Raises:
        ValueError: a crop that is odd, or larger than the pictures; damaged flow.
        VideoError: damaged RGB.
    """
    pictures = list(clip_pictures(video, stream, crop))
    return np.stack(pictures if some is None else pictures[some.start : some.stop])


def clip_pictures(video: bytes, stream: Stream, crop: int = CROP_PIXELS) -> Iterator[np.ndarray]:
    """The pictures of `whole_clip`, one at a time: [rows, crop] uint8 each. Raises as that does."""
    return (pictures[0] for pictures in _crops(video, stream, crop, 1))


def whole_clip_crops(
    video: bytes, stream: Stream, crop: int = CROP_PIXELS, crops: Crops = 1, some: range | None = None
) -> np.ndarray:
    """`whole_clip` of the centre crop alone, or of three squares along the pictures' longer side.

    The three are left, centre and right, or top, centre and bottom, all in the middle of the shorter side.

    Returns:
        [crops, T, rows, crop] uint8. Raises as `whole_clip` does.
    """
    pictures = list(_crops(video, stream, crop, crops))
    return np.stack(pictures if some is None else pictures[some.start : some.stop], axis=1)


def _crops(video: bytes, stream: Stream, crop: int, crops: Crops) -> Iterator[np.ndarray]:
    """Of each picture of a video, the crops: [crops, rows, crop] uint8."""
    for planes in _PICTURES_OF[stream](video):
        rows, columns = _room(planes, crop)
        top, left = rows // 4 * 2, columns // 4 * 2
        places = [(top, left)]
        if crops == 3 and rows > columns:
            places = [(0, left), (top, left), (rows, left)]
        elif crops == 3:
            places = [(top, 0), (top, left), (top, columns)]
        pictures = np.empty((crops, _rows_of(stream, crop), crop), np.uint8)
        for place, picture in zip(places, pictures, strict=True):
            _cut(planes, *place, picture)
        yield pictures


def training_window(
    video: bytes, stream: Stream, view: View, crop: int = CROP_PIXELS, clock: Clock | None = None
) -> np.ndarray:
    """A view of a stored clip as training sees it (paper §2.5); only its pictures are decoded, and what they need.

    Mirroring a clip negates its horizontal motion, too.

    Args:
        video: the stored video of the stream.
        stream: which one it is.
        view: pictures, crop and flip, from the plan.
        crop: side of the crop, in pixels; even.
        clock: notes what the time went to.

    Returns:
        [pictures of the view, rows, crop] uint8, as of `whole_clip`.

    Raises:
        ValueError: a crop that is odd, or larger than the pictures; damaged flow, or flow without one of the pictures.
        VideoError: the same of RGB.
    """
    clock = clock or Clock()
    pictures = view.pictures[stream]
    numbers = sorted(set(pictures))
    window = np.empty((len(numbers), _rows_of(stream, crop), crop), np.uint8)
    for place, planes in enumerate(_PICTURES_OF[stream](video, numbers)):
        clock.lap("decode")
        rows, columns = _room(planes, crop)
        top, left = (2 * int(where * (room // 2 + 1)) for where, room in ((view.top, rows), (view.left, columns)))
        if view.flip:  # mirroring rows of U beside V exchanges them
            planes = (planes[0], *reversed(planes[1:]))
        _cut(planes, top, left, window[place])
        clock.lap("augment")
    clock.lap("decode")
    if view.flip:
        lines = window.reshape(-1, crop)
        cv2.flip(lines, 1, dst=lines)
    if view.flip and stream == "flow":
        # 128 + v to 128 − v. Code 0, beyond the coding's range, can come out of the lossy video; it counts as 1.
        for x in window[:, :crop]:
            cv2.add(~x, 1, dst=x)  # stays at 255
    if numbers != list(pictures):  # it loops
        window = window[np.searchsorted(numbers, pictures)]
    clock.lap("augment")
    return window


def blank_window(stream: Stream, frames: int, crop: int) -> np.ndarray:
    """What stands for a window that cannot be decoded, as of `training_window`: grey, or no motion."""
    return np.full((frames, _rows_of(stream, crop), crop), ZERO_CODE, np.uint8)


def network_inputs(pixels: Mapping[Stream, Tensor], network: Network, device: torch.device) -> list[Tensor]:
    """Stored pixels of each stream as a network takes them: `network_input`, moved to the device before.

    The 3D-ConvNet wants 112x112 pixels (paper §2.2). Where the others see 224x224 of pictures of short side 256, it
    sees the same at half the size, as the original C3D did of pictures of 171x128; flow is halved as well.
    """
    inputs = [network_input(pixels[s].to(device, non_blocking=True), s) for s in network.streams]
    if network.architecture == "c3d" and inputs[0].shape[-1] == 2 * C3D_SIDE:
        scale = 0.5 if network.streams == ("flow",) else 1.0
        return [F.avg_pool3d(x, (1, 2, 2)) * scale for x in inputs]
    return inputs


def network_input(pixels: Tensor, stream: Stream) -> Tensor:
    """Stored pixels as the network takes them, on whatever device they are.

    Args:
        pixels: [B, T, rows, W] uint8, clips of `whole_clip` or `training_window`.
        stream: which one it is.

    Returns:
        [B, C, T, W, W] in torch's default dtype, float32, channels last in memory: red, green and blue from −1 to 1,
        not rounded to 8 bits, U and V the same for all of their 2x2 pixels; or ±bound of flow mapped to ±1 and no
        motion to 0.
    """
    batch, time, _, side = pixels.shape
    dtype = torch.get_default_dtype()
    if stream == "flow":
        codes = pixels.view(batch, time, 2, side, side).permute(0, 2, 1, 3, 4)
        return codes.to(dtype, memory_format=torch.channels_last_3d).sub_(ZERO_CODE).div_(STEPS)
    half = side // 2
    y = pixels[:, :, :side].to(dtype).sub_(_BLACK).mul_(2 / _LUMA_STEPS).sub_(1)
    u, v = pixels[:, :, side:].to(dtype).sub_(_GREY).mul_(2 / _CHROMA_STEPS).chunk(2, dim=-1)
    blue, red = 2 * (1 - _BLUE) * u, 2 * (1 - _RED) * v  # less Y
    green = (_BLUE * blue + _RED * red) / -_GREEN
    x = torch.empty(batch, time, side, side, 3, dtype=dtype, device=pixels.device)
    for channel, difference in enumerate((red, green, blue)):
        of_pixels = x[..., channel].view(batch, time, half, 2, half, 2)
        torch.add(y.view(batch, time, half, 2, half, 2), difference[:, :, :, None, :, None], out=of_pixels)
    return x.clamp_(-1, 1).permute(0, 4, 1, 2, 3)  # a view: what was [B, T, H, W, C] is channels_last_3d


def mirrored(x: Tensor, stream: Stream) -> Tensor:
    """What a network is shown of a clip, [B, C, T, H, W], of the clip as a mirror shows it: motion in x is negated."""
    flipped = x.flip(-1)
    if stream == "flow":
        flipped[:, 0].neg_()
    return flipped


def _rows_of(stream: Stream, crop: int) -> int:
    """Rows of a picture's planes, one over the other."""
    return crop * 3 // 2 if stream == "rgb" else crop * 2


def _room(planes: Sequence[np.ndarray], crop: int) -> tuple[int, int]:
    """By how many rows and columns a picture is larger than the crop."""
    height, width = planes[0].shape
    if crop % 2:
        raise ValueError(f"a crop of {crop}x{crop}: colour is stored for 2x2 pixels, want an even number")
    if min(height, width) < crop:
        raise ValueError(f"pictures of {width}x{height} are smaller than the crop of {crop}x{crop} (--crop)")
    return height - crop, width - crop


def _cut(planes: Sequence[np.ndarray], top: int, left: int, picture: np.ndarray) -> None:
    """Copy a crop of planes, Y U V or x y, into `picture` [rows, crop]."""
    crop = picture.shape[1]
    width = crop if len(planes) == 2 else crop // 2  # of those below the first
    below = [picture[crop:, start : start + width] for start in range(0, crop, width)]
    for plane, part in zip(planes, [picture[:crop], *below], strict=True):
        height, width = part.shape
        share = crop // height  # 2 where a plane has a value for 2x2 pixels
        part[:] = plane[top // share : top // share + height, left // share : left // share + width]
