"""Flow on disk, in the forms that other tools read. Each writer takes the fields of a video one at a time."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from flow.coding import encode_flow, quantise
from flow.colour import colour_code, colour_legend

FLO_MAGIC = np.float32(202021.25)
PICTURE_QUALITY = "20"  # x264's rate factor of videos to look at
LEGEND_PIXELS = 48


class Settings(NamedTuple):
    """The motion that the largest code or the full colour stands for, and pictures a second."""

    bound_pixels: float
    frame_rate: Fraction


# A pair: the first frame, [H, W, 3] uint8 RGB, and the flow from it to the next one, [H, W, 2] float32 pixels.
Pairs = Iterator[tuple[np.ndarray, np.ndarray]]
Writer = Callable[[Path, Pairs, int, Settings], None]


def write_flo(folder: Path, pairs: Pairs, _count: int, _settings: Settings) -> None:
    """`flow_00001.flo` and so on: Middlebury's format, float32 pixels."""
    for number, (_, field) in enumerate(pairs, start=1):
        height, width, _ = field.shape
        with (folder / f"flow_{number:05d}.flo").open("wb") as file:
            file.write(FLO_MAGIC.astype("<f4").tobytes())
            file.write(np.array([width, height], "<i4").tobytes())
            file.write(np.ascontiguousarray(field, "<f4").tobytes())


def read_flo(file: Path) -> np.ndarray:
    """A Middlebury file: [H, W, 2] float32 pixels.

    Raises:
        ValueError: another format, or a file that is not as long as it says.
    """
    content = file.read_bytes()
    if content[:4] != FLO_MAGIC.astype("<f4").tobytes() or len(content) < 12:
        raise ValueError(f"{file}: not a .flo file")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, 4))
    if min(width, height) < 1 or len(content) != 12 + 8 * width * height:
        raise ValueError(f"{file}: {len(content)} bytes do not hold flow of {width}x{height}")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)


def write_jpeg(folder: Path, pairs: Pairs, _count: int, settings: Settings) -> None:
    """`flow_x_00001.jpg`, `flow_y_00001.jpg` and so on: codes of 8 bits, see `flow.coding.quantise`."""
    for number, (_, field) in enumerate(pairs, start=1):
        codes = quantise(field, settings.bound_pixels)
        for component, name in enumerate("xy"):
            _write_picture(folder / f"flow_{name}_{number:05d}.jpg", codes[..., component])


def write_png(folder: Path, pairs: Pairs, _count: int, settings: Settings) -> None:
    """`flow_00001.png` and so on: the frame, and its flow in colours beside it."""
    for number, pair in enumerate(pairs, start=1):
        _write_picture(folder / f"flow_{number:05d}.png", side_by_side(*pair, settings.bound_pixels)[..., ::-1])


def write_npy(file: Path, pairs: Pairs, count: int, _settings: Settings) -> None:
    """One array [N, H, W, 2] float32 pixels."""
    array = None
    for number, (_, field) in enumerate(pairs):
        if array is None:
            array = np.lib.format.open_memmap(file, "w+", np.float32, (count, *field.shape))
        array[number] = field
    if array is not None:
        array.flush()


def write_codes(file: Path, pairs: Pairs, _count: int, settings: Settings) -> None:
    """The video that a dataset stores, see `flow.coding.encode_flow`; an odd last row or column is left out."""
    even = (field[: field.shape[0] // 2 * 2, : field.shape[1] // 2 * 2] for _, field in pairs)
    file.write_bytes(encode_flow(even, bound_pixels=settings.bound_pixels, frame_rate=settings.frame_rate))


def write_video(file: Path, pairs: Pairs, _count: int, settings: Settings) -> None:
    """A video to look at: the frames, and their flow in colours beside them."""
    with av.open(f"file:{file}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=settings.frame_rate, options={"crf": PICTURE_QUALITY})
        for number, pair in enumerate(pairs):
            picture = side_by_side(*pair, settings.bound_pixels)
            picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            if not number:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, 1 / settings.frame_rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def side_by_side(frame: np.ndarray, field: np.ndarray, scale_pixels: float) -> np.ndarray:
    """A frame [H, W, 3] uint8 RGB and its flow in colours, with the legend in a corner: [H, 2W, 3] uint8 RGB."""
    picture = colour_code(field, scale_pixels)
    side = min(LEGEND_PIXELS, min(picture.shape[:2]) // 4)
    picture[-side:, -side:] = colour_legend(side)
    return np.concatenate([frame, picture], axis=1)


def _write_picture(file: Path, picture: np.ndarray) -> None:
    ok, encoded = cv2.imencode(file.suffix, picture)  # JPEG at OpenCV's quality of 95
    if not ok:
        raise RuntimeError(f"cannot encode a picture of {picture.shape} as {file.suffix}")
    file.write_bytes(encoded.tobytes())


FOLDER_WRITERS: dict[str, Writer] = {"flo": write_flo, "jpeg": write_jpeg, "png": write_png}
# By the end of the file's name, longest first.
FILE_WRITERS: dict[str, Writer] = {".flow.mp4": write_codes, ".npy": write_npy, ".mp4": write_video}
