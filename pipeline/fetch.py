"""Where source videos come from: a folder, any URL that yt-dlp can read, YouTube itself."""

import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from manifests.clip import Clip
from manifests.lists import VIDEO_SUFFIXES
from pipeline.process import ChildError, ChildKilled, ChildTimeout, run_child
from pipeline.video import VideoError

YOUTUBE = "https://www.youtube.com/watch?v={youtube_id}"
PLACEHOLDER = "{youtube_id}"
FETCH_DEADLINE_SECONDS = 900.0

# What yt-dlp says, and the ledger's reason for it; the first that fits counts.
MESSAGES = (
    ("HTTP Error 404", "missing"),
    ("HTTP Error 410", "missing"),
    ("Video unavailable", "missing"),
    ("Unsupported URL", "not-a-video"),
    ("downloaded file is empty", "empty-file"),
    ("Did not get any data blocks", "empty-file"),
)


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


Source = FolderSource | UrlSource


def parse_source(text: str) -> Source:
    """Read `--source`: `youtube`, a URL template with `{youtube_id}`, or a folder.

    Raises:
        ValueError: none of these.
    """
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
            f"source {text!r} is neither 'youtube', nor a URL with {PLACEHOLDER}, nor a folder that exists"
        )
    return FolderSource(str(folder.resolve()))


def fetch(clip: Clip, source: Source, scratch: Path, short_side: int) -> Path:
    """Bring the video of a clip onto this machine.

    Args:
        clip: the clip; its id and path have been checked when the list was read.
        source: where videos come from.
        scratch: an empty folder for what is downloaded.
        short_side: the stored short side in pixels, for picking the smallest stream that is large enough.

    Returns:
        The video's file, in `scratch` or where it lies.

    Raises:
        VideoError: missing, fetch-failed, timeout, killed, empty-file, not-a-video.
    """
    if clip.origin == "file":
        return _existing(Path(clip.folder), [clip.video])
    if isinstance(source, FolderSource):
        suffixes = sorted(VIDEO_SUFFIXES | {suffix.upper() for suffix in VIDEO_SUFFIXES})
        return _existing(Path(source.folder), [clip.video + suffix for suffix in suffixes])
    return _download(source.template.replace(PLACEHOLDER, clip.video), source.files, scratch, short_side)


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
        reason = next((reason for said, reason in MESSAGES if said in error.message), "fetch-failed")
        raise VideoError(reason, str(error)) from error
    files = sorted(scratch.iterdir())
    if not files and files_only:
        raise VideoError("not-a-video", "the URL answers with a page, not with a video file")
    if len(files) != 1:
        raise VideoError("fetch-failed", f"yt-dlp left {len(files)} files instead of one: {[f.name for f in files]}")
    return files[0]
