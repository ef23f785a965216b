"""What sources on the net do: waited for, and left alone when they refuse."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from manifests.clip import youtube_clip
from pipeline import fetch
from pipeline.fetch import REFUSALS_IN_A_ROW, FolderSource, UrlSource, forget_refusals
from pipeline.video import VideoError

VIDEO_IDS = [f"video{i:06d}" for i in range(REFUSALS_IN_A_ROW + 3)]


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
    assert found[-1][1].startswith(f"not asked: {REFUSALS_IN_A_ROW} clips in a row or more were refused")
    assert "HTTP Error 403" in found[0][1]
    statuses[:] = [200]
    forget_refusals()
    assert fetched(source, VIDEO_IDS[0], tmp_path / "again") == (b"abcd", "")


def test_a_source_that_refuses_is_tried_now_and_then(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "ASK_AGAIN_AFTER", 3)
    source, statuses, asked = site
    statuses[:] = [403]
    for i in range(REFUSALS_IN_A_ROW + 4):
        fetched(source, f"video{i:06d}", tmp_path / str(i))
    assert len(asked) == REFUSALS_IN_A_ROW + 1  # two were not asked for, one was, one was not
    statuses[:] = [200]
    found = [fetched(source, f"again{i:06d}", tmp_path / f"again{i}")[0] for i in range(4)]
    assert found == ["blocked", b"abcd", b"abcd", b"abcd"]


def test_a_mirror_that_refuses_what_it_does_not_have(site, tmp_path):
    source, statuses, _ = site
    assert fetched(source, "itisthere00", tmp_path / "there") == (b"abcd", "")
    for i in range(REFUSALS_IN_A_ROW + 3):
        statuses[:] = [403, 200]  # the file, and after it the one that was served before
        reason, message = fetched(source, f"video{i:06d}", tmp_path / str(i))
        assert (reason, "of this file only" in message) == ("missing", True)
    statuses[:] = [403]  # now it is this machine that is refused
    found = [fetched(source, f"again{i:06d}", tmp_path / f"again{i}") for i in range(REFUSALS_IN_A_ROW + 1)]
    assert {reason for reason, _ in found} == {"blocked"}
    assert found[-1][1].startswith("not asked")


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
