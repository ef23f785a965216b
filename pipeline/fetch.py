"""Where source videos come from: a folder, any URL that yt-dlp can read, YouTube itself."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from manifests.clip import Clip
from manifests.folders import VIDEO_SUFFIXES
from pipeline import archives
from pipeline.archives import ArchiveSource, archive_source
from pipeline.ledger import LATER, REASONS
from pipeline.process import ChildError, ChildKilled, ChildTimeout, run_child
from pipeline.stored import PREFIX, DatasetSource, StoredSample, dataset_source, read_stored
from pipeline.video import VideoError

YOUTUBE = "https://www.youtube.com/watch?v={youtube_id}"
PLACEHOLDER = "{youtube_id}"
FETCH_DEADLINE_SECONDS = 900.0

# What yt-dlp says, in lower case with plain apostrophes, and the ledger's reason for it; the first that fits counts.
MESSAGES = (
    ("not a bot", "blocked"),
    ("captcha challenge", "blocked"),
    ("http error 403", "blocked"),
    ("http error 429", "throttled"),
    ("rate-limited", "throttled"),
    ("isn't available, try again later", "throttled"),
    ("confirm your age", "age"),
    ("age-restricted", "age"),
    ("available to this channel's members", "login"),
    ("members-only", "login"),
    ("in your country", "region"),
    ("from your location", "region"),
    ("private video", "private"),
    ("video is private", "private"),
    ("has been removed", "removed"),
    ("has been terminated", "removed"),
    ("no longer available", "removed"),
    ("video unavailable", "removed"),
    ("login required", "login"),
    ("http error 404", "missing"),
    ("http error 410", "missing"),
    ("unsupported url", "not-a-video"),
    ("downloaded file is empty", "empty-file"),
    ("did not get any data blocks", "empty-file"),
)
# Waits before another try where the source says that it was asked too often; after the last one the clip is throttled.
BACK_OFF_SECONDS = (2.0, 8.0)
# So many clips in a row that a source refuses: it is not asked again in this run.
REFUSALS_IN_A_ROW = 10


@dataclass(frozen=True)
class FolderSource:
    """Full-length videos `<youtube_id>.<ext>`, and one's own files by their paths, below a folder."""

    folder: str


@dataclass(frozen=True)
class UrlSource:
    """Videos at URLs made by putting the id into a template, fetched by yt-dlp.

    `files`: the URLs must answer with video files. A mirror's error page may embed some other video, which yt-dlp would
    find and which would go under the clip's label.
    """

    template: str
    files: bool = True


@dataclass(frozen=True)
class CutClip:
    """A file that is the clip already, and not the video that it was cut from."""

    file: Path


Source = FolderSource | UrlSource | DatasetSource | ArchiveSource
Video = Path | StoredSample | CutClip

# Of the process, since Beam hands every step a pickled copy of the source: clips in a row that it refused. A count that
# two threads change at once may be off by one, which does not matter here.
_refusals: Counter[UrlSource] = Counter()


def forget_refusals() -> None:
    """A new run asks every source again."""
    _refusals.clear()


def parse_source(text: str) -> Source:
    """Read `--source`: `youtube`, a URL template with `{youtube_id}`, `dataset:DIR`, `tar:WHERE`, or a folder.

    Raises:
        ValueError: none of these; a dataset that is none.
        OSError: a folder of archives, or a list of them, that cannot be read.
    """
    if text.startswith(PREFIX):
        return dataset_source(text)
    if text.startswith(archives.PREFIX):
        return archive_source(text)
    if text == "youtube":
        return UrlSource(YOUTUBE, files=False)
    if "://" in text:
        if PLACEHOLDER not in text:
            raise ValueError(f"URL {text!r} has no {PLACEHOLDER} in it, so every clip would be the same video")
        if urlsplit(text).scheme not in ("http", "https"):
            raise ValueError(f"URL {text!r}: only http:// and https:// are fetched")
        return UrlSource(text)
    folder = Path(text)
    if not folder.is_dir():
        raise ValueError(
            f"source {text!r} is neither 'youtube', nor a URL with {PLACEHOLDER}, nor dataset:DIR, nor tar:WHERE, "
            "nor a folder that exists"
        )
    return FolderSource(str(folder.resolve()))


def fetch(
    clip: Clip,
    sources: Sequence[Source],
    scratch: Path,
    short_side: int,
    earlier: Sequence[VideoError] = (),
) -> Video:
    """Bring the video of a clip onto this machine, from the first source that has it.

    Args:
        clip: the clip; its id and path have been checked when the list was read.
        sources: where videos come from; each is asked for what those before it lack.
        scratch: an empty folder for what is downloaded.
        short_side: the stored short side in pixels, for picking the smallest stream that is large enough.
        earlier: what went wrong with other sources, before these.

    Returns:
        The video's file, in `scratch` or where it lies; a dataset's sample; or a file that is cut already.

    Raises:
        VideoError: what went wrong, by a reason of the ledger. Of several sources' reasons it is the first that a later
            run tries again, else the last; the message holds them all.
    """
    errors = list(earlier)
    for number, source in enumerate(sources):
        folder = scratch / str(number)
        folder.mkdir()
        try:
            return _fetch_from(clip, source, folder, short_side)
        except VideoError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    hopeful = [error for error in errors if REASONS[error.reason].policy == LATER and error.reason != "missing"]
    told = "\n".join(f"source {number}: {error.reason}: {error.message}" for number, error in enumerate(errors, 1))
    raise VideoError((hopeful or errors[-1:])[0].reason, told)


def _fetch_from(clip: Clip, source: Source, scratch: Path, short_side: int) -> Video:
    if isinstance(source, DatasetSource):
        return read_stored(source, clip)
    if clip.origin == "file" and not clip.folder:
        raise VideoError("missing", "a file of one's own that a dataset lists: where it lies is not known")
    if clip.origin == "file":
        return _existing(Path(clip.folder), [clip.video])
    assert not isinstance(source, ArchiveSource)  # they are read before any clip is asked for
    if isinstance(source, FolderSource):
        suffixes = sorted(VIDEO_SUFFIXES | {suffix.upper() for suffix in VIDEO_SUFFIXES})
        return _existing(Path(source.folder), [clip.video + suffix for suffix in suffixes])
    return _from_url(source, source.template.replace(PLACEHOLDER, clip.video), scratch, short_side)


def _from_url(source: UrlSource, url: str, scratch: Path, short_side: int) -> Path:
    """Download, with the patience and the restraint that a source on the net needs."""
    if _refusals[source] >= REFUSALS_IN_A_ROW:
        raise VideoError(
            "blocked",
            f"not asked: {REFUSALS_IN_A_ROW} clips in a row were refused here before; the next run asks again",
        )
    for wait_seconds in (*BACK_OFF_SECONDS, None):
        try:
            video = _download(url, source.files, scratch, short_side)
        except VideoError as error:
            if error.reason == "throttled" and wait_seconds is not None:
                time.sleep(wait_seconds)
                continue
            _refusals[source] = _refusals[source] + 1 if error.reason == "blocked" else 0
            raise
        _refusals[source] = 0
        return video
    raise AssertionError("the last try returns or raises")


def reason_of(message: str) -> str:
    """The ledger's reason for what yt-dlp said of a video."""
    errors = [line for line in message.splitlines() if line.startswith("ERROR")]  # warnings say other things, too
    said = "\n".join(errors or [message]).replace("\u2019", "'").lower()
    return next((reason for part, reason in MESSAGES if part in said), "fetch-failed")


def _existing(folder: Path, names: list[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    wanted = names[0] if len(names) == 1 else f"{Path(names[0]).stem}.*"
    raise VideoError("missing", f"no video file {wanted} in the source folder")


def _download(url: str, files_only: bool, scratch: Path, short_side: int) -> Path:
    arguments = [
        sys.executable,
        *("-m", "yt_dlp", "--ignore-config", "--no-plugin-dirs", "--no-cache-dir", "--no-playlist", "--no-progress"),
        *(
            "--no-update",
            "--no-mtime",
            "--no-part",
            "--socket-timeout",
            "20",
            "--retries",
            "3",
            "--extractor-retries",
            "3",
        ),
        # Pictures only, and no post-processing: nothing of yt-dlp's needs a second program.
        *("--fixup", "never", "--format", f"bv*[height>={short_side}][width>={short_side}]/bv*/b"),
        # Among streams that are large enough the smallest; where none is, the largest.
        *("--format-sort", f"res~{short_side}"),
        *(("--use-extractors", "generic", "--match-filters", "direct") if files_only else ()),
        *("--output", "video.%(ext)s", "--", url),
    ]
    try:
        run_child(arguments, deadline_seconds=FETCH_DEADLINE_SECONDS, cwd=scratch, name="yt-dlp")
    except ChildTimeout as error:
        raise VideoError("timeout", str(error)) from error
    except ChildKilled as error:
        raise VideoError("killed", str(error)) from error
    except ChildError as error:
        raise VideoError(reason_of(error.message), str(error)) from error
    files = sorted(scratch.iterdir())
    if not files and files_only:
        raise VideoError("not-a-video", "the URL answers with a page, not with a video file")
    if len(files) != 1:
        raise VideoError("fetch-failed", f"yt-dlp left {len(files)} files instead of one: {[f.name for f in files]}")
    return files[0]
