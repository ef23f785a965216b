"""Where source videos come from: a folder, any URL that yt-dlp can read, YouTube itself."""

import hashlib
import json
import math
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from manifests.clip import Clip
from manifests.files import in_bucket
from manifests.folders import VIDEO_SUFFIXES
from manifests.storage import BUCKETS, open_path
from pipeline import archives, turns
from pipeline.archives import ArchiveSource, archive_source
from pipeline.ledger import AGAIN, PERMANENT, REASONS
from pipeline.process import ChildError, ChildKilled, ChildTimeout, run_child
from pipeline.remote import FetchError, NoRanges, RemoteVideo
from pipeline.stored import PREFIX, DatasetSource, StoredSample, dataset_source, read_stored
from pipeline.video import VideoError, read_ahead
from pipeline.youtube import JAVASCRIPT_RUNTIMES, format_arguments, reason_of, without_credentials

YOUTUBE = "https://www.youtube.com/watch?v={youtube_id}"
PLACEHOLDER = "{youtube_id}"
FETCH_DEADLINE_SECONDS = 900.0
SUFFIXES = sorted(VIDEO_SUFFIXES | {suffix.upper() for suffix in VIDEO_SUFFIXES})

# Waits before another try of what may come out well a moment later.
BACK_OFF_SECONDS = (2.0, 8.0)
# So many clips in a row that a source refuses: it is left alone; of the clips after them one in so many is asked for.
REFUSING = ("blocked", "throttled", "unreachable")
REFUSALS_IN_A_ROW = 10
ASK_AGAIN_AFTER = 100


@dataclass(frozen=True)
class FolderSource:
    """A folder, here or in a bucket, of videos `<youtube_id>.<ext>`, clips `<key>.<ext>`, and one's own files."""

    folder: str


@dataclass(frozen=True)
class UrlSource:
    """Videos at URLs made by putting the id into a template, fetched by yt-dlp.

    `files`: the URLs must answer with video files. A mirror's error page may embed some other video, which yt-dlp would
    find and which would go under the clip's label. `cookies` is the path of a file, `downloads_per_minute` what this
    process may do; proxies take turns by clip. All three come from `with_net`.
    """

    template: str
    files: bool = True
    cookies: str = ""
    proxies: tuple[str, ...] = field(default=(), repr=False)  # may hold passwords
    downloads_per_minute: float | None = None


@dataclass(frozen=True)
class CutClip:
    """A file that is the clip already, and not the video that it was cut from."""

    file: Path


Source = FolderSource | UrlSource | DatasetSource | ArchiveSource
Video = Path | StoredSample | CutClip | RemoteVideo

# Of the process, since Beam hands every step a pickled copy of the source: clips in a row that it refused, and a URL
# that it has served. A count that two threads change at once may be off by one, which does not matter here.
_refusals: Counter[UrlSource] = Counter()
_served: dict[UrlSource, str] = {}


def forget_refusals() -> None:
    """A new run asks every source again."""
    _refusals.clear()
    _served.clear()


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
    if "://" in text and urlsplit(text).scheme not in BUCKETS:
        if PLACEHOLDER not in text:
            raise ValueError(f"URL {text!r} has no {PLACEHOLDER} in it, so every clip would be the same video")
        if urlsplit(text).scheme not in ("http", "https"):
            raise ValueError(f"URL {text!r}: only http://, https://, gs:// and s3:// are fetched")
        return UrlSource(text)
    folder = open_path(text)
    if not folder.is_dir():
        raise ValueError(
            f"source {text!r} is neither 'youtube', nor a URL with {PLACEHOLDER}, nor dataset:DIR, nor tar:WHERE, "
            "nor a folder that exists"
        )
    return FolderSource(str(folder if in_bucket(folder) else folder.resolve()))


def with_net(
    sources: Sequence[Source],
    *,
    cookies: Path | None = None,
    proxies: Sequence[str] = (),
    downloads_per_minute: float | None = None,
) -> list[Source]:
    """The sources with what the net needs: cookies for YouTube alone, proxies and the rate for all with URLs.

    Args:
        sources: from `parse_source`.
        cookies: a file that `youtube.read_cookies` has read.
        proxies: URLs that `youtube.check_proxy` has seen.
        downloads_per_minute: of this process, from each source.

    Raises:
        ValueError: options for sources that are not there, or a rate that is no finite number above 0.
    """
    if downloads_per_minute is not None and not 0 < downloads_per_minute < math.inf:
        raise ValueError(f"{downloads_per_minute} downloads a minute: want a finite number above 0")
    with_urls = [source for source in sources if isinstance(source, UrlSource)]
    if (proxies or downloads_per_minute) and not with_urls:
        raise ValueError("proxies and downloads a minute are for --source youtube or a URL, and there is none")
    if cookies and not any(source.template == YOUTUBE for source in with_urls):
        raise ValueError("cookies are for --source youtube, which is not among the sources")
    told = str(cookies.resolve()) if cookies else ""
    return [
        replace(
            source,
            cookies=told if source.template == YOUTUBE else "",
            proxies=tuple(proxies),
            downloads_per_minute=downloads_per_minute,
        )
        if isinstance(source, UrlSource)
        else source
        for source in sources
    ]


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
        The video's file, in `scratch` or where it lies; a file that is cut already; a dataset's sample; or a video of
        which the wanted seconds have been downloaded, to be read within `reading` and closed by the caller.

    Raises:
        VideoError: what went wrong, by a reason of the ledger. Of several sources' reasons it is the first that a later
            run tries again, else the last; the message holds them all.
    """
    if clip.origin == "file" and clip.folder and not sources:
        return _brought(open_path(clip.folder) / clip.video, scratch)
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
    hopeful = [error for error in errors if REASONS[error.reason].policy != PERMANENT and error.reason != "missing"]
    told = "\n".join(f"source {number}: {error.reason}: {error.message}" for number, error in enumerate(errors, 1))
    raise VideoError((hopeful or errors[-1:])[0].reason, told)


def fetch_url(url: str, scratch: Path, short_side: int, start_seconds: float, end_seconds: float) -> Path | RemoteVideo:
    """Bring the one video at a URL, a file's or that of a page which yt-dlp can read, onto this machine.

    Args:
        url: of `http` or `https`.
        scratch: an empty folder for what is downloaded.
        short_side: of the pictures that are wanted, in pixels, for picking the smallest stream that is large enough.
        start_seconds: where what is wanted begins.
        end_seconds: where it ends.

    Returns:
        As of `fetch`: a file in `scratch`, or a video to be read within `reading` and closed by the caller.

    Raises:
        VideoError: what went wrong, by a reason of the ledger.
    """
    clip = Clip(url, "file", url, start_seconds, end_seconds, None, None)
    return _from_url(UrlSource(url, files=False), clip, url, scratch, short_side)


def _fetch_from(clip: Clip, source: Source, scratch: Path, short_side: int) -> Video:
    if isinstance(source, DatasetSource):
        return read_stored(source, clip)
    if clip.origin == "file" and not clip.folder:
        raise VideoError("missing", "a file of one's own that a dataset lists: where it lies is not known")
    if clip.origin == "file":
        return _brought(open_path(clip.folder) / clip.video, scratch)
    assert not isinstance(source, ArchiveSource)  # they are read before any clip is asked for
    if isinstance(source, FolderSource):
        return _from_folder(open_path(source.folder), clip, scratch)
    return _from_url(source, clip, source.template.replace(PLACEHOLDER, clip.video), scratch, short_side)


def _from_folder(folder: Path, clip: Clip, scratch: Path) -> Path | CutClip:
    """The clip, cut already and under its key's name, or else the whole video."""
    for stem in (clip.key, clip.video):
        names = [stem + suffix for suffix in SUFFIXES]
        if in_bucket(folder):  # one request rather than one a suffix
            there = {path.name for path in folder.glob(f"{stem}.*")}
            names = [name for name in names if name in there]
        for name in names:
            if (folder / name).is_file():
                video = _brought(folder / name, scratch)
                return CutClip(video) if stem == clip.key else video
    raise VideoError("missing", f"no video file {clip.video}.* or {clip.key}.* in the source folder")


def _brought(path: Path, scratch: Path) -> Path:
    """The file on this machine."""
    if not path.is_file():
        raise VideoError("missing", f"no video file {path.name} in the source folder")
    if not in_bucket(path):
        return path
    path.fs.get_file(path.path, str(scratch / path.name))  # type: ignore[attr-defined]
    return scratch / path.name


def _from_url(source: UrlSource, clip: Clip, url: str, scratch: Path, short_side: int) -> Path | RemoteVideo:
    """Download, with the patience and the restraint that a source on the net needs."""
    beyond = _refusals[source] - REFUSALS_IN_A_ROW
    if beyond >= 0 and (beyond + 1) % ASK_AGAIN_AFTER:
        _refusals[source] += 1
        raise VideoError(
            "blocked",
            f"not asked: {REFUSALS_IN_A_ROW} clips in a row or more were refused here; "
            f"one in {ASK_AGAIN_AFTER} is asked for, and the next run asks again",
        )
    for number, wait_seconds in enumerate((*BACK_OFF_SECONDS, None)):
        turns.wait_for_rate(source.template, source.downloads_per_minute)
        folder = scratch / f"try-{number}"
        folder.mkdir()
        download = _Download(source, clip, url, folder, short_side, _proxy(source, clip, number))
        try:
            video = download.from_mirror() if source.files else download.from_page()
        except VideoError as error:
            if REASONS[error.reason].policy == AGAIN and wait_seconds is not None:
                time.sleep(wait_seconds)
                continue
            if error.reason == "blocked" and download.serves_another():
                _refusals[source] = 0
                raise VideoError(
                    "missing", f"{error.message}\nof this file only: one that was served before still is"
                ) from error
            _refusals[source] = _refusals[source] + 1 if error.reason in REFUSING else 0
            raise
        _refusals[source], _served[source] = 0, url
        return video
    raise AssertionError("the last try returns or raises")


def _proxy(source: UrlSource, clip: Clip, tried: int) -> str | None:
    """The proxy of a clip; the next one for every further try."""
    if not source.proxies:
        return None
    number = int.from_bytes(hashlib.blake2b(clip.key.encode(), digest_size=8).digest(), "big")
    return source.proxies[(number + tried) % len(source.proxies)]


@contextmanager
def reading(video: RemoteVideo) -> Iterator[None]:
    """While the block runs FFmpeg reads from the net; what goes wrong there is the net's fault, whatever FFmpeg says.

    Raises:
        VideoError: by what the net said.
    """
    try:
        yield
    except (VideoError, RuntimeError):
        if not video.failure:
            raise
    if video.failure:
        message = without_credentials(video.failure)
        raise VideoError(reason_of(message), message)


@dataclass(frozen=True)
class _Download:
    """One try to download one clip."""

    source: UrlSource
    clip: Clip
    url: str
    scratch: Path
    short_side: int
    proxy: str | None

    def from_mirror(self) -> Path | RemoteVideo:
        """A video file at the URL: the wanted seconds where it is served by ranges, else as a whole."""
        remote = self._by_ranges(self.url, Path(urlsplit(self.url).path).suffix, {})
        if remote:
            return remote
        return self._whole(["--use-extractors", "generic", "--match-filters", "direct", "--", self.url])

    def from_page(self) -> Path | RemoteVideo:
        """The stream that yt-dlp finds at a page."""
        lines = self._yt_dlp(["--dump-json", "--", self.url]).splitlines()
        if len(lines) != 1:
            raise VideoError("fetch-failed", f"yt-dlp found {len(lines)} videos at the URL instead of one")
        found = json.loads(lines[0])
        if found.get("is_live"):
            raise VideoError("upcoming", "it is live: its recording may come later")
        if found.get("protocol") in ("http", "https"):
            suffix = f".{found['ext']}" if re.fullmatch(r"\w{1,8}", str(found.get("ext")), re.ASCII) else ""
            remote = self._by_ranges(found["url"], suffix, found.get("http_headers") or {})
            if remote:
                return remote
        page = self._private / "page.json"
        page.write_text(json.dumps(found))
        return self._whole(["--load-info-json", str(page)])  # the page is not asked twice

    def serves_another(self) -> bool:
        """Whether a mirror still serves a file that it served before. Some answer 403 for what they do not have."""
        another = _served.get(self.source)
        if not self.source.files or another is None:
            return False
        try:
            self._open(another, "", {}).close()
        except NoRanges:
            return True
        except FetchError:
            return False
        return True

    @property
    def _private(self) -> Path:
        """Folder of what holds secrets, for us alone."""
        folder = self.scratch / "private"
        if not folder.exists():
            folder.mkdir(mode=0o700)
            cookies = folder / "cookies.txt"  # yt-dlp writes to it
            cookies.touch(mode=0o600)
            if self.source.cookies:
                cookies.write_bytes(Path(self.source.cookies).read_bytes())
            else:
                cookies.write_text("# Netscape HTTP Cookie File\n")
        return folder

    def _open(self, url: str, suffix: str, headers: dict[str, str]) -> RemoteVideo:
        parameters: dict[str, Any] = {"cookiefile": str(self._private / "cookies.txt")}
        if self.proxy:
            parameters["proxy"] = self.proxy
        return RemoteVideo(url, self._private, name=f"video{suffix}", headers=headers, parameters=parameters)

    def _by_ranges(self, url: str, suffix: str, headers: dict[str, str]) -> RemoteVideo | None:
        """The video with the wanted seconds downloaded; None where the server does not serve ranges."""
        try:
            video = self._open(url, suffix, headers)
        except NoRanges:
            return None
        except FetchError as error:
            message = without_credentials(str(error))
            raise VideoError(reason_of(message), message) from error
        try:
            with reading(video):
                read_ahead(video.local_url, self.clip.start_seconds, self.clip.end_seconds, FETCH_DEADLINE_SECONDS)
        except BaseException:
            video.close()
            raise
        return video

    def _whole(self, arguments: list[str]) -> Path:
        folder = self.scratch / "video"
        folder.mkdir()
        self._yt_dlp(["--output", "video.%(ext)s", *arguments], folder)
        files = sorted(folder.iterdir())
        if not files and self.source.files:
            raise VideoError("not-a-video", "the URL answers with a page, not with a video file")
        if len(files) != 1:
            names = [file.name for file in files]
            raise VideoError("fetch-failed", f"yt-dlp left {len(files)} files instead of one: {names}")
        return files[0]

    def _yt_dlp(self, arguments: list[str], folder: Path | None = None) -> bytes:
        # Not on the command line, where everybody on this machine could read it.
        secrets = self._private / "yt-dlp.conf"
        secrets.touch(mode=0o600)
        secrets.write_text(f"--proxy {shlex.quote(self.proxy)}\n" if self.proxy else "")
        command = [
            *(sys.executable, "-m", "yt_dlp", "--ignore-config", "--config-locations", str(secrets)),
            *("--no-plugin-dirs", "--no-cache-dir", "--no-playlist", "--no-progress", "--no-update", "--no-mtime"),
            *("--no-part", "--socket-timeout", "20", "--retries", "3", "--extractor-retries", "3"),
            *("--cookies", str(self._private / "cookies.txt")),
            *(word for name in JAVASCRIPT_RUNTIMES for word in ("--js-runtimes", name)),
            # Pictures only, and no post-processing: nothing of yt-dlp's needs a second program.
            *("--fixup", "never", *format_arguments(self.short_side), *arguments),
        ]
        try:
            output, _ = run_child(
                command, deadline_seconds=FETCH_DEADLINE_SECONDS, cwd=folder or self._private, name="yt-dlp"
            )
        except ChildTimeout as error:
            raise VideoError("timeout", without_credentials(str(error))) from error
        except ChildKilled as error:
            raise VideoError("killed", without_credentials(str(error))) from error
        except ChildError as error:
            raise VideoError(reason_of(error.message), without_credentials(str(error))) from error
        return output
