"""Renders the demo's own data set: real video files whose classes only motion tells apart.

Two to four textured two-part objects move over a textured, scrolling background. Every object of every
class has the same five state variables (position x, position y, angle, log-radius, gap between its halves),
each drawn uniformly from its whole range. The class only says which variable sweeps, and with which sign.
A sweep wraps cyclically through the whole range, so every variable stays uniform at every instant, and a
single frame is distributed in the same way for all classes. The second class of a pair is the first one run
backwards in time, background included.

Positions wrap round a torus that is larger than the picture by `MARGIN` short sides on each of its sides. An
object that reaches further is seen on both sides at once while it crosses: a wider torus would keep objects
out of sight for too long, and at this one nothing ever jumps into view by moving.

The held-out split differs from the training split in shape kinds, speeds, texture spectra and hues. `RANGES`
holds the exact intervals, which are disjoint. Picture sizes, radii and background speeds are shared.
"""

import csv
import hashlib
import math
import multiprocessing
import subprocess
import tempfile
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Image = npt.NDArray[np.uint8]
Pair = tuple[float, float]

# Two neighbours form a pair; the second one is the first one's time reversal.
CLASSES: tuple[str, ...] = (
    *("moving left", "moving right"),
    *("moving up", "moving down"),
    *("turning clockwise", "turning anticlockwise"),
    *("approaching", "receding"),
    *("opening", "closing"),
)

# Sweep rates at pace 1, of each pair's first class. Image y points down, so "up" is negative and a growing
# angle turns clockwise on the screen. Per 1/25 s these make 2.6 % of the short side, 5 degrees, 2 % of growth
# and, for each half of an object, 2 % of its radius.
MOVE_RATE = -0.65  # short sides per second
TURN_RATE = 170.0  # degrees per second
SCALE_RATE = 0.53  # sweeps of the whole log-radius range per second
GAP_RATE = 0.70  # sweeps of the whole gap range per second

RADIUS = (0.18, 0.40)  # short sides; the log of the radius is uniform
_DRAWN_RADIUS = 0.30  # short sides; objects are drawn once at this radius and scaled into the frames
GAP = 1.5  # largest gap between the two halves, in radii of the object
MARGIN = 0.10  # short sides
OBJECT_COUNTS = (2, 3, 3, 4, 4, 4)  # equally likely: the fewer there are, the more often all hide at an edge
DRIFT = (0.05, 0.20)  # speed of the background, short sides per second; all directions are equally likely

SIZES: tuple[tuple[int, int], ...] = ((320, 240), (240, 320), (426, 240), (256, 256), (398, 224))
FRAME_RATES: tuple[Fraction, ...] = (Fraction(24), Fraction(30000, 1001), Fraction(30), Fraction(60))
LEAD_SECONDS = 1  # footage before the clip
_DEADLINE_SECONDS = 300.0  # for one file


@dataclass(frozen=True)
class Ranges:
    """What one split draws its videos from; the two splits share no value of any of these."""

    shapes: tuple[str, ...]  # kinds of shape
    pace: Pair  # factor on the sweep rates, drawn for each object
    grain: Pair  # dominant wavelength of an object's texture, in radii of the object
    background_grain: Pair  # dominant wavelength of the background, in short sides
    hue: Pair  # place inside a sixth of the hue circle, 0..1; the sixth is drawn freely


RANGES: dict[str, Ranges] = {
    "train": Ranges(("disc", "square", "kite", "cross"), (0.75, 1.05), (0.3, 0.44), (0.1, 0.16), (0.0, 0.45)),
    "val": Ranges(("triangle", "hexagon", "star"), (1.06, 1.30), (0.45, 0.6), (0.17, 0.22), (0.5, 0.95)),
}


@dataclass(frozen=True)
class Video:
    """One planned video file; everything seen and heard in it follows from these fields."""

    youtube_id: str
    label: str
    split: str  # "train" or "val"
    start_seconds: int  # where the labelled clip starts and ends inside the file
    end_seconds: int
    width: int  # pixels, even like the height
    height: int
    frame_rate: Fraction  # frames per second
    duration_seconds: int  # of the whole file, which is rounded up to whole frames
    seed: int  # of the scene: objects, textures, places at the file's middle

    @property
    def frame_count(self) -> int:
        """Number of frames in the file; frame i is shown at i / frame_rate seconds."""
        return math.ceil(self.duration_seconds * self.frame_rate)


@dataclass(frozen=True)
class State:
    """What is where at one instant, for N objects in drawing order; all arrays are float64."""

    phases: Floats  # [N, 5], x, y, angle, log-radius and gap, each as a fraction 0..1 of its range
    centres: Floats  # [N, 2], x and y in pixels of the picture; outside it by the torus' margin at most
    angles: Floats  # [N], radians, growing clockwise on the screen
    radii: Floats  # [N], pixels
    gaps: Floats  # [N], pixels between the two halves, along the object's own x axis
    background: Floats  # [2], x and y of the background's scroll, as fractions 0..1 of the picture


def plan_videos(
    clips_per_class_train: int,
    clips_per_class_val: int,
    clip_seconds: int = 2,
    seed: int = 0,
    labels: Sequence[str] = CLASSES,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> list[Video]:
    """Plans the data set: training videos first, then held-out ones, the classes of `labels` in turn.

    seed is not negative. Picture size, one of `sizes` (width, height), and frame rate depend on the clip's number only,
    so every class has exactly the same ones; so do the scenes: what is seen in one class is seen in each. One video in
    ten has an id that starts with "-".
    """
    videos = []
    times = (LEAD_SECONDS, LEAD_SECONDS + clip_seconds, LEAD_SECONDS + clip_seconds)
    for split_number, (split, clips) in enumerate((("train", clips_per_class_train), ("val", clips_per_class_val))):
        for index in range(clips):
            form = np.random.default_rng([seed, split_number, index, 0])
            width, height = sizes[form.integers(len(sizes))]
            rate = FRAME_RATES[form.integers(len(FRAME_RATES))]
            scene = int(form.integers(2**63))
            for number, label in ((CLASSES.index(label), label) for label in labels):
                # The id hashes the whole plan, so that a file made under another plan is never reused.
                text = repr((scene, split, label, width, height, rate, times))
                name = urlsafe_b64encode(hashlib.sha256(text.encode()).digest())[:11].decode()
                if (index - number) % len(CLASSES) == 0:
                    name = "-" + name[1:]
                videos.append(Video(name, label, split, *times[:2], width, height, rate, times[2], scene))
    return videos


def state(video: Video, t_seconds: float | Fraction) -> State:
    """What is where in `video`, t_seconds after its first frame.

    Exact fractions give exact time reversals: the states of a pair's two classes, over the same seed, are
    then equal bit for bit at times that mirror each other about the middle of the file.
    """
    elapsed = float(t_seconds - (video.frame_count - 1) / (2 * video.frame_rate))  # since the file's middle
    middle, rates, background, background_rates = _motion(video)
    phases = np.mod(middle + rates * elapsed, 1.0)
    short = min(video.width, video.height)
    radii = short * RADIUS[0] * (RADIUS[1] / RADIUS[0]) ** phases[:, 3]
    return State(
        phases=phases,
        centres=phases[:, :2] * _torus(video) - MARGIN * short,
        angles=2 * np.pi * phases[:, 2],
        radii=radii,
        gaps=GAP * phases[:, 4] * radii,
        background=np.mod(background + background_rates * elapsed, 1.0),
    )


def frames(video: Video) -> Iterator[Image]:
    """Streams the video's frames, each [height, width, 3] uint8 RGB; frame i shows i / frame_rate seconds."""
    source = np.random.default_rng([video.seed, 1])
    size = (video.width, video.height)
    tile = _background(video, source)
    objects = [_halves(video, source) for _ in _motion(video)[0]]
    torus_width, torus_height = _torus(video).tolist()
    wraps = [(i * torus_width, j * torus_height) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for index in range(video.frame_count):
        now = state(video, index / video.frame_rate)
        x, y = now.background * size + (np.array(size) - 1) / 2
        frame = np.asarray(cv2.getRectSubPix(tile, size, (x, y)), np.uint8)
        rows = np.column_stack([now.centres, now.angles, now.gaps, now.radii]).tolist()
        for pictures, (x, y, angle, gap, radius) in zip(objects, rows, strict=True):
            zoom = radius / (_DRAWN_RADIUS * min(size))
            for picture, side in zip(pictures, (-0.5, 0.5), strict=True):
                shift_x, shift_y = side * gap * math.cos(angle), side * gap * math.sin(angle)
                places = [(x + shift_x + wrap_x, y + shift_y + wrap_y) for wrap_x, wrap_y in wraps]
                # The object's centre lies amid the edge that the halves share; pixel centres are whole numbers.
                origin = (picture.shape[1] - 0.5 if side < 0 else -0.5, picture.shape[0] / 2 - 0.5)
                _draw(frame, picture, origin, places, angle, zoom)
        yield frame


def render(video: Video, folder: Path) -> Path:
    """Writes folder/<youtube_id>.mp4 (H.264 and AAC) and returns its path.

    The file appears under its name only when it is complete. Raises RuntimeError when the encoder fails or
    has not finished within five minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{video.youtube_id}.mp4"
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as work:
        _encode(video, Path(work, "part.mp4"))
        Path(work, "part.mp4").replace(path)
    return path


def render_all(
    videos: Sequence[Video], folder: Path, workers: int = 2, on_done: Callable[[Video, Path], None] | None = None
) -> list[Path]:
    """Renders the videos whose files are not there yet, in `workers` processes; returns all paths in order.

    on_done is called in this process, once for each video when its file is there, the ones found included.
    The first failure cancels what has not started yet and is raised.
    """
    paths = {video: folder / f"{video.youtube_id}.mp4" for video in videos}
    missing = [video for video, path in paths.items() if not path.exists()]
    for video in paths:
        if on_done and video not in missing:
            on_done(video, paths[video])
    # A forked child would inherit OpenCV's thread pool in an unusable state; a spawned one starts clean.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        tasks = {pool.submit(render, video, folder): video for video in missing}
        try:
            for task in as_completed(tasks):
                path = task.result()
                if on_done:
                    on_done(tasks[task], path)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return list(paths.values())


def write_manifest(videos: Sequence[Video], folder: Path) -> tuple[Path, Path, Path]:
    """Writes train.csv and val.csv in Kinetics' format, times in seconds, and classes.txt, their labels, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.csv", folder / "val.csv", folder / "classes.txt"
    for path, split in zip(paths, RANGES, strict=False):
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
            for video in (video for video in videos if video.split == split):
                rows.writerow((video.label, video.youtube_id, video.start_seconds, video.end_seconds, split))
    labels = {video.label for video in videos}
    paths[2].write_text("".join(f"{label}\n" for label in CLASSES if label in labels), encoding="utf-8")
    return paths


def _torus(video: Video) -> Floats:
    """Width and height in pixels of the torus that positions wrap round."""
    return np.array([video.width, video.height]) + 2 * MARGIN * min(video.width, video.height)


@lru_cache(maxsize=32)
def _motion(video: Video) -> tuple[Floats, Floats, Floats, Floats]:
    """Phases [N, 5] at the middle of the file, their rates per second, and the same [2] of the background."""
    source = np.random.default_rng([video.seed, 0])
    count = int(source.choice(OBJECT_COUNTS))
    phases = source.uniform(size=(count, 5))
    paces = source.uniform(*RANGES[video.split].pace, size=count)
    background = source.uniform(size=2)
    direction, speed = source.uniform(0, 2 * np.pi), source.uniform(*DRIFT)
    # Everything above is drawn alike for every class, which comes in only here.
    pair, is_second = divmod(CLASSES.index(video.label), 2)
    time_sign = -1.0 if is_second else 1.0
    short = min(video.width, video.height)
    sweeps = (*(MOVE_RATE * short / _torus(video)), TURN_RATE / 360, SCALE_RATE, GAP_RATE)
    rates = np.zeros((count, 5))
    rates[:, pair] = time_sign * sweeps[pair] * paces
    drift = speed * short / np.array([video.width, video.height])
    return phases, rates, background, time_sign * drift * np.array([np.cos(direction), np.sin(direction)])


def _texture(source: np.random.Generator, shape: tuple[int, int], wavelength: float, hue: Pair, value: Pair) -> Floats:
    """Coloured, band-limited, toroidal noise of shape [h, w]: [h, w, 3] float32 RGB, 0..255.

    wavelength is the dominant one, in pixels; hue is as in `Ranges`; value bounds the brightness, 0..1.
    """
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    frequency[0, 0] = 1e-9
    band = np.exp(-0.5 * (np.log(frequency * wavelength) / 0.35) ** 2).astype(np.float32)
    white = np.fft.rfft2(source.standard_normal((2, *shape), np.float32))
    fields = np.fft.irfft2(white * band, shape)
    mixes = 0.5 + 0.5 * np.tanh(1.2 * fields / fields.std(axis=(1, 2), keepdims=True))[..., None]
    # Three colours: a dark one, a bright one and one between; the first field mixes two, the other the third.
    hues = 60 * (source.integers(6, size=3) + source.uniform(*hue, size=3))
    colours = np.stack([hues, source.uniform(0.45, 0.85, 3), [*value, sum(value) / 2]], axis=1)
    rgb = 255 * cv2.cvtColor(colours[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    plain = rgb[0] + (rgb[1] - rgb[0]) * mixes[0]
    return np.asarray(plain + (rgb[2] - plain) * (0.7 * mixes[1]), np.float32)


def _background(video: Video, source: np.random.Generator) -> Image:
    """The background, repeated to twice the picture: [2 * height + 1, 2 * width + 1, 3] uint8 RGB."""
    ranges, shape = RANGES[video.split], (video.height, video.width)
    wavelength = source.uniform(*ranges.background_grain) * min(shape)
    tile = _texture(source, shape, wavelength, ranges.hue, (0.15, 0.6)).astype(np.uint8)
    return np.pad(tile, ((0, video.height + 1), (0, video.width + 1), (0, 0)), mode="wrap")


def _ring(corners: int, inner: float = 1.0) -> npt.NDArray[np.complex128]:
    """Outline of a regular shape, the first corner up; every other corner lies at radius `inner`."""
    outline: npt.NDArray[np.complex128] = -1j * np.exp(2j * np.pi * np.arange(corners) / corners)
    outline[1::2] *= inner
    return outline


# Outlines inside the unit circle, x + iy with y down; the halves meet at x = 0.
_OUTLINES: dict[str, npt.NDArray[np.complex128]] = {
    "disc": 0.9 * _ring(64),
    "square": _ring(4) * np.exp(0.25j * np.pi),
    "kite": np.array([-1j, 0.8 - 0.3j, 1j, -0.8 - 0.3j]),
    "cross": np.outer([1, 1j, -1, -1j], [-0.36 - 0.92j, 0.36 - 0.92j, 0.36 - 0.36j]).ravel(),
    "triangle": _ring(3),
    "hexagon": 0.95 * _ring(6),
    "star": _ring(10, 0.5),
}


def _halves(video: Video, source: np.random.Generator) -> list[Image]:
    """One object's halves, left and right, of `_DRAWN_RADIUS`: premultiplied RGBA pictures [2 * w, w, 4] uint8."""
    ranges = RANGES[video.split]
    radius = _DRAWN_RADIUS * min(video.width, video.height)
    half = math.ceil(radius) + 2
    outline = _OUTLINES[ranges.shapes[source.integers(len(ranges.shapes))]]
    wavelength = source.uniform(*ranges.grain) * radius
    points = np.rint(4 * (np.stack([outline.real, outline.imag], axis=1) * radius + half)).astype(np.int32)
    fine = cv2.fillPoly(np.zeros((8 * half, 8 * half), np.uint8), [points], 255)
    # The edge is drawn two pixels soft, so that it stays smooth when the object shrinks to half this size.
    mask = cv2.resize(cv2.blur(fine, (7, 7)), (2 * half, 2 * half), interpolation=cv2.INTER_AREA)
    pictures = []
    for alpha in (mask[:, :half], mask[:, half:]):
        texture = _texture(source, (2 * half, half), wavelength, ranges.hue, (0.3, 1.0))
        # A dark rim keeps objects apart from backgrounds that look like them.
        depth = cv2.distanceTransform(np.pad(alpha, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        lit = 0.12 + 0.88 * np.clip(depth - 0.06 * radius, 0, 1)
        pictures.append(np.dstack([texture * (lit * alpha / 255)[..., None], alpha]).round().astype(np.uint8))
    return pictures


def _draw(frame: Image, picture: Image, origin: Pair, places: Sequence[Pair], angle: float, zoom: float) -> None:
    """Draws an RGBA picture onto frame [H, W, 3], its pixel `origin` coming to lie at each of places (x, y).

    The picture is turned by angle, in radians, and enlarged by zoom.
    """
    along, across = math.cos(angle) * zoom, math.sin(angle) * zoom
    corners = [(x - origin[0], y - origin[1]) for x in (-1, picture.shape[1]) for y in (-1, picture.shape[0])]
    xs = [along * x - across * y for x, y in corners]
    ys = [across * x + along * y for x, y in corners]
    box = min(xs), math.ceil(max(xs)) + 1, min(ys), math.ceil(max(ys)) + 1
    for x, y in places:
        x0, x1 = max(0, math.floor(x + box[0])), min(frame.shape[1], math.ceil(x) + box[1])
        y0, y1 = max(0, math.floor(y + box[2])), min(frame.shape[0], math.ceil(y) + box[3])
        if x0 >= x1 or y0 >= y1:
            continue
        left = x - x0 - along * origin[0] + across * origin[1]
        top = y - y0 - across * origin[0] - along * origin[1]
        matrix = np.array([[along, -across, left], [across, along, top]])
        over = cv2.warpAffine(picture, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        through = cv2.cvtColor(255 - over[:, :, 3], cv2.COLOR_GRAY2RGB)
        under = frame[y0:y1, x0:x1]
        under[:] = cv2.add(cv2.multiply(under, through, scale=1 / 255), over[:, :, :3])


def _encode(video: Video, path: Path) -> None:
    """Streams the frames into the encoder, which writes `path`."""
    # The sound is drawn from the seed alone: the class must not be heard either.
    source = np.random.default_rng([video.seed, 2])
    sine, noise = f"sine=frequency={source.integers(200, 900)}", f"anoisesrc=amplitude=0.2:seed={source.integers(999)}"
    sound = f"{source.choice([sine, noise])}:sample_rate=22050"
    arguments = (
        "ffmpeg -nostdin -loglevel error -f rawvideo -pixel_format yuv420p"
        f" -video_size {video.width}x{video.height} -framerate {video.frame_rate} -i pipe:0"
        f" -f lavfi -i {sound}:duration={float(video.frame_count / video.frame_rate)}"
        " -c:v libx264 -preset veryfast -crf 18 -pix_fmt yuv420p -threads 1 -c:a aac -aac_coder fast -b:a 48k"
    ).split()
    # The encoder's messages go to a file: a pipe that nobody reads while frames are written could fill up.
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen([*arguments, str(path.resolve())], stdin=subprocess.PIPE, stderr=messages)
        assert process.stdin is not None
        deadline = threading.Timer(_DEADLINE_SECONDS, process.kill)
        deadline.start()
        try:
            # A broken pipe means that the encoder has gone; its exit status and messages say why.
            with suppress(BrokenPipeError), process.stdin as pipe:
                for frame in frames(video):
                    pipe.write(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            deadline.cancel()
        if process.returncode != 0:
            messages.seek(0)
            reason = messages.read().decode(errors="replace").strip()
            raise RuntimeError(f"encoding {video.youtube_id} ended with {process.returncode}: {reason}")
