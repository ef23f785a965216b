"""What is particular to YouTube and yt-dlp: pages, cookies, proxies, rates, and what has to be installed."""

import base64
import os
import re
import stat
import threading
import time
from contextlib import closing, suppress
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yt_dlp.version
from apache_beam.options.pipeline_options import PipelineOptions
from test_pipeline import HEADER, prep

from manifests.clip import youtube_clip
from pipeline import fetch, turns, youtube
from pipeline.fetch import UrlSource, forget_refusals, parse_source, reading, with_net
from pipeline.remote import RemoteVideo
from pipeline.runners import fetching_processes
from pipeline.video import VideoError
from pipeline.youtube import check_proxy, preflight, read_cookies, without_credentials

DATAFLOW = (
    *("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t"),
    "--sdk_container_image=example.org/image:1",
)


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that is the whole PATH, with FFmpeg in it."""
    folder = tmp_path / "bin"
    for name in ("ffmpeg", "ffprobe"):
        program(folder, name, "exit 0")
    monkeypatch.setenv("PATH", str(folder))
    return folder


YOUNG = date(*map(int, yt_dlp.version.__version__.split(".")[:3])) + timedelta(days=1)


@pytest.mark.parametrize(
    ("name", "version", "missing"),
    [
        ("deno", "deno 2.4.0 (stable, release, x86_64-unknown-linux-gnu)", ""),
        ("node", "v22.3.0", ""),
        ("node", "v18.19.0", "node 18.19.0 is too old"),
        ("deno", "deno 1.46.3 (stable, release)", "deno 1.46.3 is too old"),
        ("qjs", "QuickJS version 2025-04-26", "deno from 2.3.0 or node from 22.0.0"),
    ],
)
def test_preflight_looks_for_javascript(name, version, missing, programs):
    program(programs, name, f"echo '{version}'")
    found = preflight(today=YOUNG)
    assert not any(finding.fatal for finding in found)
    assert [missing in finding.message for finding in found] == ([True] if missing else [])


def test_preflight_says_what_is_missing(programs):
    program(programs, "deno", "echo 'deno 2.4.0'")
    assert preflight(today=YOUNG) == []
    (old,) = preflight(today=YOUNG + timedelta(days=youtube.OLD_DAYS))
    assert (old.fatal, f"is {youtube.OLD_DAYS + 1} days old" in old.message) == (False, True)
    (programs / "ffprobe").unlink()
    (fatal,) = preflight(today=YOUNG)
    assert (fatal.fatal, "ffprobe is not installed" in fatal.message) == (True, True)


HEAD = "# Netscape HTTP Cookie File\n"
LOGGED_IN = "#HttpOnly_.youtube.com\tTRUE\t/\tTRUE\t4102444800\tSID\tverysecret\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "its first line is not"),
        ('[{"domain": ".youtube.com", "name": "SID", "value": "verysecret"}]', "its first line is not"),
        (HEAD + LOGGED_IN + "SID=verysecret; path=/\n", ":3: 1 fields between tabs instead of 7"),
        (HEAD + LOGGED_IN.replace("4102444800", "verysecret"), ":2: the fifth field"),
        (HEAD + LOGGED_IN.replace("TRUE\t/", "FALSE\t/"), ":2: TRUE belongs to domains"),
        (b"\xff\xfe", "no text"),
    ],
)
def test_cookies_that_are_none(content, message, tmp_path):
    path = tmp_path / "cookies.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_cookies(path)
    assert "verysecret" not in str(raised.value)


def test_cookies_that_do_not_help(tmp_path, programs):
    program(programs, "deno", "echo 'deno 2.4.0'")
    path = tmp_path / "cookies.txt"
    path.write_text(HEAD + LOGGED_IN)
    assert preflight(path, today=YOUNG) == []
    path.write_text(HEAD + LOGGED_IN.replace("youtube.com", "example.org"))
    assert "none of youtube.com" in preflight(path, today=YOUNG)[0].message
    path.write_text(HEAD + LOGGED_IN.replace("4102444800", "946684800"))
    assert "have expired" in preflight(path, today=YOUNG)[0].message


class Net:
    """A site on loopback, which is a proxy as well: a page with a video in it, and what it was asked for."""

    def __init__(self, folder):
        self.folder, self.asked, self.command_lines, self.status = folder, [], [], 200
        net = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                net.asked.append((self.path, dict(self.headers)))
                for process in Path("/proc").glob("[0-9]*/cmdline"):
                    with suppress(OSError):
                        net.command_lines.append(process.read_bytes())
                if net.status != 200:
                    self.send_error(net.status)
                    return
                content = (net.folder / self.path.rpartition("/")[2].partition("?")[0]).read_bytes()
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                start, last = (
                    (int(wanted[1]), min(int(wanted[2]), len(content) - 1)) if wanted else (0, len(content) - 1)
                )
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Type", "text/html" if self.path.endswith("page") else "video/mp4")
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
                self.send_header("Set-Cookie", "given=byserver")
                self.send_header("Content-Length", str(last + 1 - start))
                self.end_headers()
                self.wfile.write(content[start : last + 1])

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def net(tmp_path, make_video):
    folder = tmp_path / "site"
    folder.mkdir()
    make_video(folder / "video.mp4", "-movflags", "+faststart", seconds=2)
    (folder / "page").write_text(
        "<html><title>t</title><video><source src='video.mp4' type='video/mp4'></video></html>"
    )
    made = Net(folder)
    forget_refusals()
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetched(source, folder):
    folder.mkdir(exist_ok=True)
    return fetch.fetch(youtube_clip("abcdefghijk", 0, 1, None, None), [source], folder, 64)


def test_a_page_is_asked_once_and_its_stream_read_by_ranges(net, tmp_path):
    with closing(
        fetched(UrlSource(f"http://127.0.0.1:{net.port}/{{youtube_id}}/page", files=False), tmp_path / "a")
    ) as v:
        assert isinstance(v, RemoteVideo)
        assert v.size == (net.folder / "video.mp4").stat().st_size
        with reading(v):
            assert v.read(0, 1000) == (net.folder / "video.mp4").read_bytes()[:1000]
    assert [path for path, headers in net.asked if path.endswith("video.mp4")] == ["/abcdefghijk/video.mp4"]


def test_cookies_go_where_they_belong_and_stay_as_they_are(net, tmp_path):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(HEAD + "127.0.0.1\tFALSE\t/\tFALSE\t4102444800\tSID\tverysecret\n")
    before = cookies.read_bytes()
    scratch = tmp_path / "a"
    source = UrlSource(f"http://127.0.0.1:{net.port}/{{youtube_id}}/page", files=False, cookies=str(cookies))
    with closing(fetched(source, scratch)):
        sent = [headers.get("Cookie", "") for _, headers in net.asked]
        assert all("SID=verysecret" in text for text in sent)
        assert "given=byserver" in sent[-1]  # what the page's server gave counts for the stream
        private = [path for path in scratch.rglob("*") if path.is_file() and b"verysecret" in path.read_bytes()]
        assert private
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    assert cookies.read_bytes() == before
    assert not any(b"verysecret" in line for line in net.command_lines)
    net.asked.clear()
    elsewhere = UrlSource(source.template.replace("127.0.0.1", "localhost"), files=False, cookies=str(cookies))
    with closing(fetched(elsewhere, tmp_path / "b")):
        assert not any("SID" in headers.get("Cookie", "") for _, headers in net.asked)


def test_options_go_to_the_sources_they_are_for(tmp_path):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(HEAD)
    mirror, tube = with_net(
        [parse_source("https://example.org/{youtube_id}.mp4"), parse_source("youtube")],
        cookies=cookies,
        proxies=["http://127.0.0.1:1"],
        downloads_per_minute=6,
    )
    assert (mirror.cookies, tube.cookies) == ("", str(cookies))
    assert mirror.proxies == tube.proxies == ("http://127.0.0.1:1",)
    assert mirror.downloads_per_minute == tube.downloads_per_minute == 6
    with pytest.raises(ValueError, match="cookies are for --source youtube"):
        with_net([parse_source("https://example.org/{youtube_id}.mp4")], cookies=cookies)
    with pytest.raises(ValueError, match="and there is none"):
        with_net([parse_source(str(tmp_path))], downloads_per_minute=6)
    for rate in (float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match="want a finite number above 0"):
            with_net([parse_source("youtube")], downloads_per_minute=rate)


PASSWORD = "pass-and-word"


@pytest.mark.slow
def test_proxies_take_turns_and_keep_their_passwords(net, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", ())
    proxies = tuple(f"http://user{number}:{PASSWORD}@127.0.0.1:{net.port}" for number in range(3))
    source = UrlSource("http://site.invalid/{youtube_id}/page", files=False, proxies=proxies)
    mirror = UrlSource("http://site.invalid/{youtube_id}/video.mp4", proxies=proxies)
    users = []
    for video_id in ("abcdefghijk", "bcdefghijkl", "cdefghijklm", "defghijklmn", "abcdefghijk"):
        net.asked.clear()
        scratch = tmp_path / f"{len(users)}"
        scratch.mkdir()
        asked_for = mirror if users else source
        with closing(fetch.fetch(youtube_clip(video_id, 0, 1, None, None), [asked_for], scratch, 64)):
            told = {headers["Proxy-Authorization"].split()[1] for _, headers in net.asked}
            assert all(path.startswith("http://site.invalid/") for path, _ in net.asked)
        assert len(told) == 1  # one machine asks for a page and for its stream
        users.append(base64.b64decode(told.pop()).decode())
    assert len(set(users)) > 1
    assert users[0] == users[-1]
    assert net.command_lines
    assert not any(PASSWORD.encode() in line for line in net.command_lines)
    assert PASSWORD not in repr(source)
    for status in (407, 403):
        net.status = status
        for files in (True, False):
            refused = UrlSource("http://site.invalid/{youtube_id}", files=files, proxies=proxies)
            with pytest.raises(VideoError) as raised:
                fetched(refused, tmp_path / f"{status}-{files}")
            assert raised.value.reason == {407: "unreachable", 403: "blocked"}[status]
            assert PASSWORD not in str(raised.value)


def test_a_proxy_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", ())
    for files in (True, False):
        source = UrlSource(
            "http://site.invalid/{youtube_id}", files=files, proxies=(f"http://u:{PASSWORD}@127.0.0.1:9",)
        )
        with pytest.raises(VideoError) as raised:
            fetched(source, tmp_path / str(files))
        assert raised.value.reason == "unreachable"
        assert PASSWORD not in str(raised.value)


def test_messages_lose_credentials():
    told = without_credentials("to proxy http://u:p@h:1/ and https://h/ and a@b and http://u:p@q@h:1/")
    assert told == "to proxy http://h:1/ and https://h/ and a@b and http://h:1/"


@pytest.mark.parametrize(
    "text", ["http://h", "ftp://h:1", "h:1", "http://h:x", "http://h:1/x", "socks5://:1", "http://h:1\n--exec x"]
)
def test_proxies_that_are_none(text):
    with pytest.raises(ValueError, match="must be SCHEME"):
        check_proxy(text)
    assert check_proxy("socks5://u:p@h:1080") == "socks5://u:p@h:1080"


def test_downloads_are_spaced():
    began = time.monotonic()
    threads = [threading.Thread(target=turns.wait_for_rate, args=("a source", 600)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 0.4  # the first at once, the others a tenth of a second apart


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ([], 1),
        (["--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=8"], 1),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=3"], 3),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=0"], os.cpu_count()),
        (["--runner=FlinkRunner", "--environment_type=LOOPBACK"], 1),
        (
            ["--runner=DataflowRunner", "--max_num_workers=7", "--experiments=no_use_multiple_sdk_containers"],
            7,
        ),
        (
            [
                *("--runner=DataflowRunner", "--num_workers=5", "--autoscaling_algorithm=NONE"),
                "--experiments=no_use_multiple_sdk_containers",
            ],
            5,
        ),
    ],
)
def test_a_rate_is_divided(options, processes):
    assert fetching_processes(PipelineOptions(options)) == processes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (DATAFLOW, "add --max_num_workers=N"),
        ((*DATAFLOW, "--num_workers=7"), "add --max_num_workers=N"),
        (("--runner=FlinkRunner", "--parallelism=4"), "--environment_type=LOOPBACK"),
    ],
)
def test_a_rate_is_refused_where_it_cannot_be_divided(options, told, tmp_path):
    (tmp_path / "list.csv").write_text(HEADER)
    run = ("run", "--manifest", tmp_path / "list.csv", "--output", tmp_path / "out", "--downloads-per-minute", 6)
    assert told in " ".join(prep(*run, *options, status=2).split())


def test_a_run_says_what_is_missing_before_it_starts(programs, tmp_path):
    (tmp_path / "list.csv").write_text(HEADER + "yoga,abcdefghijk,0,1,val\n")
    (programs / "ffmpeg").unlink()
    run = ("run", "--manifest", tmp_path / "list.csv", "--output", tmp_path / "out")
    told = prep(*run, status=1)
    assert "youtube: ffmpeg is not installed" in told
    assert "youtube: no JavaScript runtime" in told
    (tmp_path / "cookies.txt").write_text("SID=verysecret")
    told = prep(*run, "--cookies", tmp_path / "cookies.txt", status=1)
    assert "its first line is not" in told
    assert "verysecret" not in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lease"]
