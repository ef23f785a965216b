"""Only the wanted seconds: a cut out of a video on the net is, byte for byte, the cut out of the whole file."""

import os
import re
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from test_pipeline import HEADER, ledger, prep, shard_bytes

from manifests.clip import youtube_clip
from manifests.sample import RgbCoding
from pipeline import fetch, remote
from pipeline.fetch import UrlSource, forget_refusals, reading
from pipeline.remote import RemoteVideo
from pipeline.video import VideoError, encode_rgb

CODING = RgbCoding(short_side=32)
SECONDS = 60
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-b:v", "250k", "-maxrate", "250k", "-bufsize", "500k")
VP8 = (
    "-r",
    "12",
    "-c:v",
    "libvpx",
    "-deadline",
    "realtime",
    "-cpu-used",
    "8",
    "-b:v",
    "250k",
    "-minrate",
    "250k",
    "-g",
)
SOUND = ("-f", "lavfi", "-i", f"sine=duration={SECONDS}", "-c:a", "aac", "-map", "1", "-map", "0")
# Suffix, options; where the index lies, how far apart keyframes are, and how seeking goes differ in all of them.
CONTAINERS = {
    "index first": (".mp4", (*SOUND, *H264, "-movflags", "+faststart")),
    "keyframes far apart": (".webm", (*VP8, "180")),
    "index last": (".mp4", (*SOUND, *H264)),
    "fragments": (".mp4", (*H264, "-movflags", "+dash+global_sidx")),
    "begins at 3 s": (".mkv", ("-vf", "setpts=PTS+3/TB", *H264, "-copyts", "-avoid_negative_ts", "disabled")),
    "no index": (".ts", H264),
    "old": (".avi", ("-c:v", "mpeg4", "-bf", "2", "-b:v", "250k")),
    "one keyframe": (".webm", (*VP8, "99999")),
}
QUICK = ("index first",)


class Site:
    """A folder served by ranges, over loopback; counts what it sends. `ranges`: whether it does; `refuse_from`: the
    number of requests after which it answers with `status`."""

    def __init__(self, folder):
        self.folder, self.sent, self.asked, self.ranges, self.refuse_from, self.status = folder, 0, [], True, None, 403
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                site.asked.append((self.path, self.headers.get("Range")))
                refused = site.refuse_from is not None and len(site.asked) > site.refuse_from
                path = site.folder / self.path.lstrip("/")
                if refused or not path.is_file():
                    self.send_error(site.status if refused else 404)
                    return
                content = path.read_bytes()
                wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if site.ranges else None
                start, last = 0, len(content) - 1
                if wanted:
                    start, last = int(wanted[1]), min(int(wanted[2] or last), last)
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Type", "video/mp4")
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
                self.send_header("Content-Length", str(last + 1 - start))
                self.end_headers()
                try:
                    self.wfile.write(content[start : last + 1])
                    site.sent += last + 1 - start
                except OSError:
                    pass

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 16 * 1024)  # the videos here are small
    monkeypatch.setattr(remote, "LONG_READ_BLOCKS", 1000)
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.01)
    folder = tmp_path / "site"
    folder.mkdir()
    served = Site(folder)
    forget_refusals()
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory, make_video):
    """Long videos by the names of `CONTAINERS`, each made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("long"), {}

    def get(name):
        if name not in made:
            suffix, options = CONTAINERS[name]
            made[name] = make_video(folder / f"{len(made)}{suffix}", *options, seconds=SECONDS)
        return made[name]

    return get


def fetched(source, start, end, folder):
    folder.mkdir(exist_ok=True)
    return fetch.fetch(youtube_clip("abcdefghijk", start, end, None, None), [source], folder, 32)


@pytest.mark.parametrize(
    "container", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONTAINERS]
)
def test_a_cut_of_what_is_read_is_the_cut_of_the_whole(container, long_videos, site, tmp_path):
    video = long_videos(container)
    (site.folder / f"abcdefghijk{video.suffix}").symlink_to(video)
    source = UrlSource(f"{site.url}/{{youtube_id}}{video.suffix}")
    for number, (start, end) in enumerate([(37, 47), (0, 3), (SECONDS - 4, SECONDS + 9)]):
        site.sent = 0
        with closing(fetched(source, start, end, tmp_path / str(number))) as found, reading(found):
            here = site.sent
            cut = encode_rgb(found.local_url, tmp_path / "ours.mp4", CODING, start, end)
        assert cut == encode_rgb(video, tmp_path / "theirs.mp4", CODING, start, end)
        assert cut.frames >= 75
        assert site.sent <= here + 16 * remote.BLOCK_BYTES  # nearly all was here before the cut was made
        if container != "one keyframe":
            assert site.sent < 0.8 * video.stat().st_size


def test_a_run_from_a_mirror_is_a_run_from_files(long_videos, site, tmp_path):
    video = long_videos("index first")
    (site.folder / "abcdefghijk.mp4").symlink_to(video)
    (site.folder / "htmlhtmlhtm.mp4").write_text("<!doctype html>" + "no video" * 100)
    listed = tmp_path / "list.csv"
    listed.write_text(
        HEADER
        + "yoga,abcdefghijk,30,33,val\nyoga,abcdefghijk,200,210,val\n"
        + "yoga,htmlhtmlhtm,0,9,val\nyoga,missingmiss,0,9,val\n"
    )
    options = ("--manifest", listed, "--short-side", 32, "--flow", "none")
    source = f"{site.url}/{{youtube_id}}.mp4"
    prep("run", *options, "--source", source, "--output", tmp_path / "mirror", "--downloads-per-minute", 6000)
    prep("run", *options, "--source", site.folder, "--output", tmp_path / "files")
    assert shard_bytes(tmp_path / "mirror") == shard_bytes(tmp_path / "files") != {}
    reasons = {key: entry["reason"] for key, entry in ledger(tmp_path / "mirror").items()}
    assert reasons == {key: entry["reason"] for key, entry in ledger(tmp_path / "files").items()}
    assert sorted(map(str, reasons.values())) == ["None", "missing", "not-a-video", "too-short"]
    assert "127.0.0.1" not in ledger(tmp_path / "mirror")["htmlhtmlhtm_000000_000009"]["message"]


def test_ffmpeg_asks_this_machine_only(long_videos, site, tmp_path, monkeypatch):
    video = long_videos("index first")
    (site.folder / "abcdefghijk.mp4").symlink_to(video)
    with closing(fetched(UrlSource(f"{site.url}/{{youtube_id}}.mp4"), 0, 1, tmp_path / "a")) as found, reading(found):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        assert encode_rgb(found.local_url, tmp_path / "cut.mp4", CODING, 0, 1).frames == 25


@pytest.mark.parametrize("answer", ["bytes 0-9/" + "9" * 5000, "bytes 0-9/*", "bytes 5-9/100", "pages 0-9/10"])
def test_a_server_that_tells_nonsense_of_ranges(answer, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(206)
            self.send_header("Content-Range", answer)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"0123456789")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(remote.NoRanges):
        RemoteVideo(f"http://127.0.0.1:{server.server_port}/", tmp_path, name="video", headers={}, parameters={})
    server.shutdown()
    server.server_close()


def test_a_server_without_ranges_sends_the_whole(long_videos, site, tmp_path):
    video = long_videos("index first")
    (site.folder / "abcdefghijk.mp4").symlink_to(video)
    site.ranges = False
    found = fetched(UrlSource(f"{site.url}/{{youtube_id}}.mp4"), 30, 33, tmp_path / "a")
    assert found.read_bytes() == video.read_bytes()


def test_a_net_that_fails_midway_does_not_make_a_shorter_clip(long_videos, site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", ())
    video = long_videos("index first")
    (site.folder / "abcdefghijk.mp4").symlink_to(video)
    source = UrlSource(f"{site.url}/{{youtube_id}}.mp4")
    for status, reason in ((403, "blocked"), (429, "throttled"), (503, "fetch-failed")):
        site.asked.clear()
        site.status, site.refuse_from = status, 12
        with pytest.raises(VideoError, match=f"HTTP Error {status}") as raised:
            fetched(source, 30, 40, tmp_path / str(status))
        assert raised.value.reason == reason
    # The same after everything seemed to be there.
    site.asked.clear()
    site.refuse_from = None
    with closing(fetched(source, 30, 40, tmp_path / "later")) as found:
        site.status, site.refuse_from = 403, 0
        with pytest.raises(VideoError, match="HTTP Error 403"), reading(found):
            encode_rgb(found.local_url, tmp_path / "cut.mp4", CODING, 60, 70)


def test_a_file_that_changes_is_not_mixed(long_videos, site, tmp_path):
    (site.folder / "video.mp4").write_bytes(os.urandom(4 * remote.BLOCK_BYTES))
    with closing(RemoteVideo(f"{site.url}/video.mp4", tmp_path, name="video.mp4", headers={}, parameters={})) as video:
        (site.folder / "video.mp4").write_bytes(os.urandom(5 * remote.BLOCK_BYTES))
        with pytest.raises(remote.FetchError, match=r"changed while it was read, from \d+ to \d+ bytes"):
            video.read(2 * remote.BLOCK_BYTES, 10)


def test_a_server_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_BLOCK_DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", ())
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-99999/100000")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not stop.wait(0.1):
                self.wfile.write(b"x")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(VideoError, match="timed out") as raised:
        fetched(UrlSource(f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"), 0, 9, tmp_path / "a")
    assert raised.value.reason == "timeout"
    stop.set()
    server.shutdown()
    server.server_close()


def test_only_who_knows_the_name_reads(long_videos, site, tmp_path):
    (site.folder / "video.mp4").write_bytes(b"x" * 1000)
    with closing(RemoteVideo(f"{site.url}/video.mp4", tmp_path, name="video.mp4", headers={}, parameters={})) as video:
        assert urlopen(video.local_url).read() == b"x" * 1000
        with pytest.raises(HTTPError, match="404"):
            urlopen(re.sub(r"/[0-9a-f]{32}/", "/" + "0" * 32 + "/", video.local_url))
