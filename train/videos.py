"""The videos that i3d-predict is given: which there are, and how they are prepared, as the pipeline does it."""

import os
import queue
import re
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from manifests.folders import VIDEO_SUFFIXES, visible
from manifests.sample import RGB, RgbCoding
from model import Stream
from pipeline.fetch import fetch_url, reading
from pipeline.video import StoredRgb, VideoError, encode_rgb, flow_coding, flow_of
from pipeline.youtube import without_credentials

MAXIMUM_SECONDS = 6 * 3600.0
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")

Video = Path | str  # a file, or a URL
Result = TypeVar("Result")


class StoredStream(NamedTuple):
    """A video in its stored form, and how many pictures it has."""

    content: bytes
    pictures: int


def find_videos(names: Sequence[str]) -> list[Video]:
    """What names stand for: files, URLs, and the videos in folders at any depth, in the order of their names.

    Hidden files are none, and folders that a folder links to are not entered: they may lead round in a circle.

    Raises:
        ValueError: a name of nothing that is there, a folder without a video, a URL of another kind.
        OSError: a folder that cannot be read.
    """
    found: list[Video] = []
    for name in names:
        path = Path(name)
        if "://" in name:
            found.append(_checked_url(name))
        elif path.is_dir():
            videos = list(_videos_in(path))
            if not videos:
                raise ValueError(f"{name}: no video lies in this folder ({', '.join(sorted(VIDEO_SUFFIXES))})")
            found += videos
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"{name}: there is no such file or folder, and it is no http:// or https:// URL")
    return found


def name_of(video: Video) -> str:
    """What a video is called in results: its path or its URL, without a password."""
    return without_credentials(str(video))


def prepare(
    video: Video,
    scratch: Path,
    *,
    with_flow: bool,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    short_side: int = RgbCoding.short_side,
    threads: int = 1,
) -> dict[Stream, StoredStream]:
    """Bring [start_seconds, end_seconds) of a video, by default all of it, into the stored form, by stream.

    Args:
        video: the file, or a URL.
        scratch: an existing folder for files that are removed again.
        with_flow: whether flow is wanted beside RGB.
        start_seconds: where to begin.
        end_seconds: where to end; None is the end of the video.
        short_side: of the stored pictures, in pixels.
        threads: pairs of pictures whose flow is computed at a time.

    Raises:
        VideoError: it is missing, no video, too short, longer than six hours, …
    """
    coding = RgbCoding(short_side=short_side)
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as name:
        output, downloads = Path(name) / RGB, Path(name) / "downloads"

        def encoded(source: Path | str) -> StoredRgb:
            return encode_rgb(source, output, coding, start_seconds, end_seconds, MAXIMUM_SECONDS)

        if isinstance(video, Path):
            if not video.is_file():
                raise VideoError("missing", "it is no longer there")
            # Under a plain name: tools neither get nor repeat what a stranger called it, perhaps not even in UTF-8.
            plain = Path(name) / (f"video{video.suffix}" if SUFFIX.fullmatch(video.suffix) else "video")
            plain.symlink_to(video.resolve())
            rgb = encoded(plain)
        else:
            downloads.mkdir()
            latest = start_seconds + MAXIMUM_SECONDS + 1  # what lies behind it is not asked for
            end = latest if end_seconds is None else min(end_seconds, latest)
            fetched = fetch_url(video, downloads, short_side, start_seconds, end)
            if isinstance(fetched, Path):
                rgb = encoded(fetched)
            else:
                with closing(fetched), reading(fetched):
                    rgb = encoded(fetched.local_url)
    stored: dict[Stream, StoredStream] = {"rgb": StoredStream(rgb.content, rgb.frames)}
    if with_flow:
        flow = flow_of(rgb.content, flow_coding(), threads=threads)
        stored["flow"] = StoredStream(flow.content, flow.frames)
    return stored


def ahead(
    videos: Sequence[Video], work: Callable[[Video], Result], workers: int
) -> Iterator[tuple[Video, Result | VideoError]]:
    """Do some work on each video, on the next ones while the caller is busy with one; results in the videos' order.

    Args:
        videos: which.
        work: what to do, in a thread.
        workers: videos at a time. Results of as many more wait for the caller, so that a long video holds up no other.

    Returns:
        Each video with the result, or with the error that says what is wrong with it.

    Raises:
        Exception: any other error of the work, at its video's turn.
    """
    jobs: queue.SimpleQueue[tuple[Video, Future[Result]] | None] = queue.SimpleQueue()

    def run() -> None:
        while job := jobs.get():
            video, future = job
            try:
                future.set_result(work(video))
            except BaseException as error:
                future.set_exception(error)

    # Daemons, unlike an executor's: who presses Ctrl-C does not wait for them, and their children die with us.
    for _ in range(workers):
        threading.Thread(target=run, name="prepare", daemon=True).start()
    left = iter(videos)
    waiting: deque[tuple[Video, Future[Result]]] = deque()

    def hand_out(count: int) -> None:
        for video in islice(left, count):
            waiting.append((video, Future()))
            jobs.put(waiting[-1])

    try:
        hand_out(2 * workers)
        while waiting:
            video, future = waiting.popleft()
            try:
                result: Result | VideoError = future.result()
            except VideoError as error:
                result = error
            hand_out(1)
            yield video, result
            del result, future  # a stored video may be large
    finally:
        while not jobs.empty():
            jobs.get()
        for _ in range(workers):
            jobs.put(None)


def workers_for(videos: int) -> tuple[int, int]:
    """How many videos to prepare at a time on this machine, and with how many threads each."""
    cores = os.cpu_count() or 1
    workers = max(min(cores, videos), 1)
    return workers, max(cores // workers, 1)


def _checked_url(text: str) -> str:
    """A URL as given, if it is one that is fetched."""
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("http", "https") and parts.hostname and text.isprintable() and " " not in text
    except ValueError:  # brackets that hold no address
        right = False
    if not right:
        raise ValueError(f"{without_credentials(text)[:200]!r}: no http:// or https:// URL")
    return text


def _videos_in(folder: Path) -> Iterator[Path]:
    waiting = [folder]
    while waiting:
        entry = waiting.pop()
        if entry == folder or (entry.is_dir() and not entry.is_symlink()):
            waiting += reversed(visible(entry))
        elif entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file():
            yield entry
