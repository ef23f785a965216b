"""What is particular to yt-dlp and to YouTube: options, what yt-dlp says and what it means, what has to be there."""

import http.cookiejar
import importlib.util
import re
import shutil
from datetime import date
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from yt_dlp.cookies import YoutubeDLCookieJar
from yt_dlp.globals import supported_js_runtimes
from yt_dlp.version import __version__ as yt_dlp_version

OLD_DAYS = 90
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
COOKIE_HEADER = re.compile(r"#( Netscape)? HTTP Cookie File")
# Those that yt-dlp runs without rights to files and net; by itself it looks for deno only.
JAVASCRIPT_RUNTIMES = ("deno", "node")

# What yt-dlp says, in lower case with plain apostrophes, and the ledger's reason for it; the first that fits counts.
MESSAGES = (
    # The machine, before the video: a refusal may come in the words "sign in" or "unavailable".
    ("not a bot", "blocked"),
    ("captcha challenge", "blocked"),
    ("ip is likely being blocked", "blocked"),
    ("http error 403", "blocked"),
    ("http error 402", "blocked"),
    ("http error 429", "throttled"),
    ("rate-limited", "throttled"),
    ("isn't available, try again later", "throttled"),
    ("video unavailable. this content isn't available", "blocked"),  # of some addresses, and not for good
    # The video.
    ("confirm your age", "age"),
    ("age-restricted", "age"),
    ("inappropriate for some users", "age"),
    ("premieres in", "upcoming"),
    ("live event will begin", "upcoming"),
    ("live event has ended", "upcoming"),  # its recording is being made
    ("live stream recording is not available", "removed"),
    ("available to this channel's members", "login"),
    ("members-only", "login"),
    ("premium members", "login"),
    ("requires payment", "login"),
    ("only available for registered users", "login"),
    ("in your country", "region"),
    ("from your location", "region"),
    ("private video", "private"),
    ("video is private", "private"),
    ("drm protected", "encrypted"),
    ("has been removed", "removed"),
    ("removed by the uploader", "removed"),
    ("has been terminated", "removed"),
    ("has closed their youtube account", "removed"),
    ("no longer available", "removed"),
    ("blocked it on copyright grounds", "removed"),
    ("does not exist", "removed"),
    ("video unavailable", "removed"),
    ("login required", "login"),
    ("sign in", "login"),
    # The net.
    ("http error 404", "missing"),
    ("http error 410", "missing"),
    ("failed to resolve", "unreachable"),
    ("name resolution", "unreachable"),
    ("name or service not known", "unreachable"),
    ("no address associated with hostname", "unreachable"),
    ("network is unreachable", "unreachable"),
    ("no route to host", "unreachable"),
    ("connection refused", "unreachable"),
    ("unable to connect to proxy", "unreachable"),
    ("http error 407", "unreachable"),
    ("certificate_verify_failed", "unreachable"),
    ("timed out", "timeout"),
    # What came.
    ("unsupported url", "not-a-video"),
    ("downloaded file is empty", "empty-file"),
    ("did not get any data blocks", "empty-file"),
)


def reason_of(message: str) -> str:
    """The ledger's reason for what yt-dlp said of a video."""
    # Warnings before the error say other things, too; what follows it belongs to it.
    _, error, said = ("\n" + message).partition("\nERROR")
    said = (error + said if error else message).replace("\u2019", "'").lower()
    return next((reason for part, reason in MESSAGES if part in said), "fetch-failed")


def without_credentials(message: str) -> str:
    """A message without the user names and passwords that its URLs hold."""
    return re.sub(r"(?<=://)[^/\s]+@", "", message)


def format_arguments(short_side: int) -> list[str]:
    """yt-dlp's options for the smallest stream with pictures that is large enough, or else the largest there is.

    Of streams of one size: one that is read by ranges, no high dynamic range, H.264 (which every FFmpeg decodes), and
    the smaller file, so one without sound. Sound alone is no choice: YouTube withholds the rest now and then.
    """
    large = f"[height>={short_side}][width>={short_side}]"
    order = f"res~{short_side},proto,+hdr,vcodec:h264,+size,+br"
    return ["--format", f"bv*{large}/bv*", "--format-sort", order]


def check_proxy(text: str) -> str:
    """A proxy's URL as given, if it is one.

    Raises:
        ValueError: it is none; the text is not repeated, it may hold a password.
    """
    try:
        parts = urlsplit(text)
        right = parts.scheme in PROXY_SCHEMES and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:  # a port that is no number
        right = False
    if not right or not text.isprintable() or " " in text:
        raise ValueError(f"proxy: must be SCHEME://[USER:PASSWORD@]HOST:PORT, SCHEME one of {', '.join(PROXY_SCHEMES)}")
    return text


def read_cookies(path: Path) -> YoutubeDLCookieJar:
    """Read a file of cookies as yt-dlp does, but strictly: of lines that it skips it tells the content.

    Raises:
        ValueError: no such file, or not in Netscape's format; names the line and never what it holds.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cookies {path}: {error.strerror if isinstance(error, OSError) else 'no text'}") from None
    if not lines or not COOKIE_HEADER.match(lines[0]):
        raise ValueError(f"cookies {path}: its first line is not '# Netscape HTTP Cookie File', as browsers export it")
    for number, line in enumerate(lines, 1):
        line = line.removeprefix("#HttpOnly_")
        fields = line.split("\t")
        if line.strip() and not line.startswith("#"):
            if len(fields) != 7:
                raise ValueError(f"cookies {path}:{number}: {len(fields)} fields between tabs instead of 7")
            if (fields[1] == "TRUE") != line.startswith("."):
                raise ValueError(
                    f"cookies {path}:{number}: TRUE belongs to domains that start with a dot, and only there"
                )
            if not re.fullmatch(r"([0-9]+(\.[0-9]+)?)?", fields[4]):
                raise ValueError(f"cookies {path}:{number}: the fifth field is not when the cookie expires, in seconds")
    jar = YoutubeDLCookieJar(str(path))
    try:
        jar.load()
    except http.cookiejar.LoadError:
        raise ValueError(f"cookies {path}: yt-dlp cannot read it") from None
    return jar


class Finding(NamedTuple):
    """Something that is missing on this machine; `fatal` if nothing can be fetched without it."""

    fatal: bool
    message: str


def preflight(cookies: Path | None = None, *, today: date | None = None) -> list[Finding]:
    """What downloads from YouTube will miss on this machine.

    Args:
        cookies: the file of `--cookies`.
        today: for yt-dlp's age.

    Raises:
        ValueError: a file of cookies that is none.
    """
    missing = [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]
    found = [Finding(True, f"{program} is not installed (apt-get install ffmpeg)") for program in missing]
    days = ((today or date.today()) - _released(yt_dlp_version)).days
    if days > OLD_DAYS:
        message = f"yt-dlp {yt_dlp_version} is {days} days old, and YouTube changes"
        found.append(Finding(False, f"{message}: pip install --upgrade 'yt-dlp[default]'"))
    found += _javascript()
    if cookies is not None:
        jar = read_cookies(cookies)
        ours = [cookie for cookie in jar if cookie.domain.lstrip(".").endswith(("youtube.com", "google.com"))]
        if not ours:
            found.append(Finding(False, f"cookies {cookies}: none of youtube.com"))
        elif all(cookie.is_expired() for cookie in ours):
            found.append(Finding(False, f"cookies {cookies}: all of youtube.com have expired, export them again"))
    return found


def _released(version: str) -> date:
    year, month, day = (int(part) for part in version.split(".")[:3])
    return date(year, month, day)


def _javascript() -> list[Finding]:
    """Whether the runtime is there that solves YouTube's challenges, as yt-dlp judges it."""
    runtimes = [supported_js_runtimes.value[name]().info for name in JAVASCRIPT_RUNTIMES]
    wanted = " or ".join(
        f"{name} from {'.'.join(map(str, supported_js_runtimes.value[name].MIN_SUPPORTED_VERSION))}"
        for name in JAVASCRIPT_RUNTIMES
    )
    without = "; without it YouTube gives few of its streams, or none"
    if not any(runtime and runtime.supported for runtime in runtimes):
        old = [f"{runtime.name} {runtime.version} is too old" for runtime in runtimes if runtime]
        return [Finding(False, f"no JavaScript runtime for yt-dlp ({', '.join([*old, wanted])}){without}")]
    if importlib.util.find_spec("yt_dlp_ejs") is None:
        return [Finding(False, f"the package yt-dlp-ejs is missing: pip install 'yt-dlp[default]'{without}")]
    return []
