"""What sources on the net say: recognised, waited for, and left alone when they refuse."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from manifests.clip import youtube_clip
from pipeline import fetch
from pipeline.fetch import REFUSALS_IN_A_ROW, FolderSource, UrlSource, forget_refusals, reason_of
from pipeline.ledger import REASONS
from pipeline.video import VideoError

VIDEO_IDS = [f"video{i:06d}" for i in range(REFUSALS_IN_A_ROW + 3)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("ERROR: [youtube] abc: Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser", "blocked"),
        ("ERROR: unable to download video data: HTTP Error 403: Forbidden", "blocked"),
        ("ERROR: [youtube] abc: Something. YouTube is requiring a captcha challenge before playback", "blocked"),
        ("ERROR: [youtube] abc: HTTP Error 429: Too Many Requests", "throttled"),
        (
            "ERROR: [youtube] abc: This content isn't available, try again later. The current session has been "
            "rate-limited by YouTube for up to an hour.",
            "throttled",
        ),
        ("ERROR: [youtube] abc: Sign in to confirm your age. This video may be inappropriate for some users.", "age"),
        ("ERROR: [youtube] abc: Private video. Sign in if you've been granted access to this video", "private"),
        ("ERROR: [youtube] abc: Video unavailable. This video is private", "private"),
        ("ERROR: [youtube] abc: Video unavailable. This video has been removed by the uploader", "removed"),
        (
            "ERROR: [youtube] abc: Video unavailable. This video is no longer available because the YouTube account "
            "associated with this video has been terminated.",
            "removed",
        ),
        ("ERROR: [youtube] abc: Video unavailable", "removed"),
        ("ERROR: [youtube] abc: The uploader has not made this video available in your country", "region"),
        (
            "ERROR: [youtube] abc: Video unavailable. This video contains content from Example, who has blocked it in "
            "your country on copyright grounds",
            "region",
        ),
        ("ERROR: [youtube] abc: This video is available to this channel's members on level: One", "login"),
        ("ERROR: [youtube] abc: Join this channel to get access to members-only content like this video", "login"),
        ("ERROR: [generic] abc: Unable to download webpage: HTTP Error 404: Not Found", "missing"),
        ("ERROR: [generic] abc: timed out", "fetch-failed"),
    ],
)
def test_what_yt_dlp_says(message, reason):
    assert reason_of(message) == reason
    assert reason in REASONS


@pytest.fixture
def site():
    """A server on loopback that answers with the statuses it is given, in turn, the last one for ever."""
    asked, statuses = Counter(), [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            self.send_response(status)
            self.send_header("Content-Type", "video/mp4")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"abcd")

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    forget_refusals()
    yield UrlSource(f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"), statuses, asked
    server.shutdown()
    server.server_close()


def fetched(source, video_id, folder, before=()):
    """A clip's video, or the reason why there is none and the message."""
    folder.mkdir(exist_ok=True)
    try:
        sources = [*before, source]
        return fetch.fetch(youtube_clip(video_id, 0, 1, None, None), sources, folder, 64).read_bytes(), ""
    except VideoError as error:
        return error.reason, error.message


def test_a_source_that_refuses_is_left_alone(site, tmp_path):
    source, statuses, asked = site
    statuses[:] = [403]
    found = [fetched(source, video_id, tmp_path / video_id) for video_id in VIDEO_IDS]
    assert {reason for reason, _ in found} == {"blocked"}
    assert len(asked) == REFUSALS_IN_A_ROW
    assert found[-1][1].startswith(f"not asked: {REFUSALS_IN_A_ROW} clips in a row were refused")
    assert "HTTP Error 403" in found[0][1]
    statuses[:] = [200]
    forget_refusals()
    assert fetched(source, VIDEO_IDS[0], tmp_path / "again") == (b"abcd", "")


def test_one_answer_between_refusals_counts(site, tmp_path):
    source, statuses, asked = site
    for i in range(REFUSALS_IN_A_ROW + 3):
        statuses[:] = [404 if i == 5 else 403]
        fetched(source, VIDEO_IDS[i], tmp_path / str(i))
    assert len(asked) == REFUSALS_IN_A_ROW + 3


def test_a_source_that_is_asked_too_often_gets_time(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", (0.1, 0.1))
    source, statuses, asked = site
    statuses[:] = [429, 200]
    assert fetched(source, VIDEO_IDS[0], tmp_path / "a") == (b"abcd", "")
    statuses[:], before = [429], asked.total()
    reason, message = fetched(source, VIDEO_IDS[1], tmp_path / "b")
    assert (reason, "HTTP Error 429" in message) == ("throttled", True)
    assert asked.total() >= before + 3


def test_a_source_is_asked_for_what_those_before_it_lack(site, tmp_path):
    source, statuses, asked = site
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / f"{VIDEO_IDS[0]}.mp4").write_bytes(b"here")
    folder = FolderSource(str(tmp_path / "videos"))
    assert fetched(source, VIDEO_IDS[0], tmp_path / "0", [folder]) == (b"here", "")
    assert not asked
    assert fetched(source, VIDEO_IDS[1], tmp_path / "1", [folder]) == (b"abcd", "")
    statuses[:] = [404]
    reason, message = fetched(source, VIDEO_IDS[2], tmp_path / "2", [folder])
    assert reason == "missing"
    assert message.startswith("source 1: missing: no video file")
    assert "\nsource 2: missing: " in message
    statuses[:] = [403, 404]
    refusing = UrlSource(source.template.replace("{", "refusing-{"))
    assert fetched(source, VIDEO_IDS[3], tmp_path / "3", [refusing, folder])[0] == "blocked"  # may come out well later
