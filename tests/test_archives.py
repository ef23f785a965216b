"""Archives of clips as CVDF has them: odd names, replacements, damage; read only where they are needed."""

import io
import json
import os
import subprocess
import tarfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from pipeline import archives
from pipeline.archives import ArchiveError, archive_source, read_archive
from pipeline.cli import main

HEADER = "label,youtube_id,time_start,time_end,split\n"
A, B, C, D = (f"{letter * 11}_000010_000012" for letter in "ABCD")
RUN = ("--short-side", 32, "--flow", "none", "--workers", 2)


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def pack(path, members, mode="w:gz"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def ledger(output):
    lines = (output / "ledger" / "outcomes.jsonl").read_text().splitlines()
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def shards(output):
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.glob("shards/*/*")}


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_video):
    """The bytes of a cut clip, by its picture size."""
    folder = tmp_path_factory.mktemp("clips")
    return lambda size: make_video(folder / f"{size}.mp4", size=size, seconds=2).read_bytes()


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "val.csv").write_text(HEADER + "".join(f"yoga,{key[:11]},10,12,val\n" for key in (A, B, C, D)))
    return tmp_path / "val.csv"


def test_clips_of_archives(tmp_path, listed, clip, serve, make_video):
    """K400's parts, K600's odd names and macOS's `._` files, K700's paths; what they lack comes from elsewhere."""
    mirror = tmp_path / "mirror"
    pack(mirror / "k400" / "part_0.tar.gz", {f"./{A}.mp4": clip("64x48"), f"./._{A}.mp4": b"AppleDouble"})
    odd = {f"doing (odd) things/{B}.mp4": clip("96x48"), "doing (odd) things/notes.txt": b"x", f"{D}.mp4": b""}
    pack(mirror / "k600" / "doing (odd) things.tar", odd, "w")
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "CCCCCCCCCCC.mp4", seconds=14)
    (mirror / "paths.txt").write_text("k400/part_0.tar.gz\n\nk600/doing (odd) things.tar\n")
    (tmp_path / "site").symlink_to(mirror)
    for name, source in (
        ("folder", f"tar:{mirror}"),
        ("list", f"tar:{mirror}/paths.txt"),
        ("net", f"tar:{serve(mirror)}/paths.txt"),
    ):
        output = tmp_path / name
        prep("run", "--manifest", listed, "--source", source, "--source", tmp_path / "videos", "--output", output, *RUN)
        entries = ledger(output)
        assert {key: entry["reason"] for key, entry in entries.items()} == {A: None, B: None, C: None, D: "missing"}
        assert "empty-file: " in entries[D]["message"]
        assert entries[A]["stored"]["frames"] == 50
        assert entries[A]["seconds"]["encode"] > 0
    assert shards(tmp_path / "folder") == shards(tmp_path / "list") == shards(tmp_path / "net")


def header(name, size, kind=tarfile.REGTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT) + (bytes(512) if kind != tarfile.REGTYPE else b"")


@pytest.mark.parametrize("between", [b"G" * 512, bytes(512), bytes(1024)])
def test_damage_in_the_middle_is_not_the_end(tmp_path, between):
    one, two = (pack(tmp_path / f"{key}.tar", {f"{key}.mp4": key.encode()}, "w").read_bytes() for key in (A, B))
    (tmp_path / "a.tar").write_bytes(one[:1024] + between + two)
    with pytest.raises(ArchiveError, match="damaged at byte 1024"):
        list(read_archive(str(tmp_path / "a.tar"), tmp_path, lambda key: True))


class Breaking(BaseHTTPRequestHandler):
    """Serves one file, by ranges or not; each second connection is lost half-way where `breaks` is set."""

    content, ranges, breaks, asked = b"", True, False, 0

    def do_GET(self):
        cls = type(self)
        cls.asked += 1
        first, last = 0, len(cls.content) - 1
        if cls.ranges and "Range" in self.headers:
            first, last = (int(number or last) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
            last = min(last, len(cls.content) - 1)
        self.send_response(206 if cls.ranges and "Range" in self.headers else 200)
        if cls.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(cls.content)}")
        part = cls.content[first : last + 1]
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            lost = cls.breaks and (cls.asked % 2 or not cls.ranges)
            with suppress(OSError):
                self.wfile.write(part[: len(part) // 2] if lost else part)

    do_HEAD = do_GET

    def log_message(self, format, *args):
        pass


@pytest.mark.parametrize(("ranges", "breaks"), [(True, False), (True, True), (False, False)])
def test_archives_on_the_net(tmp_path, monkeypatch, ranges, breaks):
    """More than one block, from servers with and without ranges, and over connections that are lost."""
    monkeypatch.setattr(archives, "BACK_OFF_SECONDS", (0.0, 0.0, 0.0))
    members = {f"{key}.mp4": os.urandom(6 << 20) for key in (A, B, C)}
    content = pack(tmp_path / "a.tar", members, "w").read_bytes()
    handler = type("Handler", (Breaking,), {"content": content, "ranges": ranges, "breaks": breaks})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        found = {member.key: member.file.read_bytes() for member in read_archive(url, tmp_path, lambda key: True)}
    finally:
        server.shutdown()
        server.server_close()
    assert {f"{key}.mp4": content for key, content in found.items()} == members


def test_a_lost_connection_without_ranges_is_the_archives_fault(tmp_path):
    content = pack(tmp_path / "a.tar", {f"{A}.mp4": os.urandom(6 << 20)}, "w").read_bytes()
    handler = type("Handler", (Breaking,), {"content": content, "ranges": False, "breaks": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ArchiveError, match=r"a\.tar"):
            list(read_archive(f"http://127.0.0.1:{server.server_port}/a.tar", tmp_path, lambda key: True))
    finally:
        server.shutdown()
        server.server_close()


def test_a_list_of_archives_beside_which_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "one.tar", {f"{A}.mp4": b"x"}, "w")
    (tmp_path / "paths.txt").write_text("one.tar\n")
    ((archive,),) = archive_source("tar:paths.txt").waves
    assert [member.key for member in read_archive(archive, tmp_path, lambda key: False)] == [A]


def test_a_plan_is_measured_on_clips_of_archives(tmp_path, listed, clip):
    content = clip("64x48")
    pack(
        tmp_path / "tars" / "part.tar.gz", {f"{A}.mp4": content, "other_000000_000001.mp4": b"x", f"{B}.mp4": b"broken"}
    )
    output = tmp_path / "out"
    plan = ("plan", "--manifest", listed, "--source", f"tar:{tmp_path / 'tars'}", "--output", output, *RUN)
    found = json.loads(prep(*plan, "--json"))
    assert (found["due"], found["sample"], found["sample_failed"]) == (4, 2, {"not-a-video": 1})
    assert found["a_clip"]["bytes to fetch"]["mean"] == (len(content) + len(b"broken")) / 2
    assert not output.exists()


def test_a_replacement_archive_overrides(tmp_path, listed, clip):
    pack(tmp_path / "tars" / "a_part.tar.gz", {f"{A}.mp4": clip("64x48"), f"{B}.mp4": clip("64x48")})
    replaced = {f"{A}.mp4": clip("128x48"), f"{B}.mp4": b"broken"}
    pack(tmp_path / "tars" / "replacement_for_corrupted.tgz", replaced)
    output = tmp_path / "out"
    prep("run", "--manifest", listed, "--source", f"tar:{tmp_path / 'tars'}", "--output", output, *RUN)
    (shard,) = output.glob("shards/val/*.tar")
    with tarfile.open(shard) as tar:
        width = {key: json.load(tar.extractfile(f"{key}.json"))["source"]["width"] for key in (A, B)}
    assert width == {A: 128, B: 64}


@pytest.mark.slow
def test_an_archive_is_read_again_only_for_a_clip_that_it_holds(tmp_path, listed, clip, serve):
    site = tmp_path / "site"
    pack(site / "one.tar.gz", {f"{A}.mp4": clip("64x48")})
    pack(site / "two.tar.gz", {f"{B}.mp4": clip("64x48"), f"{C}.mp4": b"broken"})
    (site / "paths.txt").write_text("one.tar.gz\ntwo.tar.gz\n")
    run = ("run", "--manifest", listed, "--source", f"tar:{site}/paths.txt", "--output", tmp_path / "out", *RUN)
    prep(*run)
    assert ledger(tmp_path / "out")[C]["reason"] == "not-a-video"
    status = (site / "one.tar.gz").stat()
    (site / "one.tar.gz").write_bytes(bytes(status.st_size))  # would be damaged if it were read
    os.utime(site / "one.tar.gz", ns=(status.st_atime_ns, status.st_mtime_ns))
    prep(*run)
    entries = ledger(tmp_path / "out")
    assert (entries[D]["reason"], entries[D]["attempts"]) == ("missing", 2)
    pack(site / "two.tar.gz", {f"{B}.mp4": clip("64x48"), f"{C}.mp4": clip("64x48"), f"{D}.mp4": clip("96x48")})
    prep(*run)  # it is another file now
    assert {key: entry["reason"] for key, entry in ledger(tmp_path / "out").items()} == {
        **{A: None, B: None, D: None},
        C: "not-a-video",
    }
    prep(*run, "--retry", "not-a-video")
    assert {entry["reason"] for entry in ledger(tmp_path / "out").values()} == {None}


def test_a_damaged_archive_is_named_and_what_it_gave_is_kept(tmp_path, listed, clip):
    whole = pack(tmp_path / "tars" / "part.tar.gz", {f"{A}.mp4": clip("64x48"), f"{B}.mp4": clip("640x480")})
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) - 20_000])
    run = ("run", "--manifest", listed, "--source", f"tar:{whole.parent}", "--output", tmp_path / "out", *RUN)
    prep(*run)
    entries = ledger(tmp_path / "out")
    assert {key: entry["reason"] for key, entry in entries.items()} == {
        A: None,
        **dict.fromkeys((B, C, D), "fetch-failed"),
    }
    assert "part.tar.gz: " in entries[B]["message"]
    whole.write_bytes(content)
    prep(*run)
    assert [key for key, entry in ledger(tmp_path / "out").items() if entry["reason"]] == [C, D]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_cut_of_an_archive_is_noticed(tmp_path, mode):
    members = {f"{A}.mp4": b"a" * 1000, f"{B}.mp4": b"b" * 1000}
    whole = pack(tmp_path / "a.tar", members, mode).read_bytes()
    found = list(read_archive(str(tmp_path / "a.tar"), tmp_path, lambda key: key == B))
    assert found == [(A, None, 1000), (B, tmp_path / f"{B}.mp4", 1000)]
    assert (tmp_path / f"{B}.mp4").read_bytes() == b"b" * 1000
    # A plain tar is filled up with zeros, of which the first block is the mark of its end: header, file, header, file.
    end = 512 + 1024 + 512 + 1024 + 512 if mode == "w" else len(whole)
    for length in (0, 100, end // 3, end // 2, end - 512, end - 1):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"a\.tar"):
            list(read_archive(str(tmp_path / "a.tar"), tmp_path, lambda key: True))


def test_a_clip_that_stands_twice_in_an_archive(tmp_path, listed, clip):
    """The first counts; the second does not get in its way while it is encoded."""
    path = pack(tmp_path / "a.tar", {f"one/{A}.mp4": clip("640x480"), f"two/{A}.mp4": b"broken"}, "w")
    prep("run", "--manifest", listed, "--source", f"tar:{path}", "--output", tmp_path / "out", *RUN)
    assert ledger(tmp_path / "out")[A]["reason"] is None


def test_headers_and_holes_do_not_fill_memory_or_disk(tmp_path):
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 32
    (tmp_path / "a.tar").write_bytes(huge.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    with pytest.raises(ArchiveError, match="a header of 4294967296 bytes"):
        list(read_archive(str(tmp_path / "a.tar"), tmp_path, lambda key: True))
    (tmp_path / "a.tar").write_bytes(
        b"".join(header("././@LongLink", 1, tarfile.GNUTYPE_LONGNAME) for _ in range(3000))
    )
    with pytest.raises(ArchiveError, match="RecursionError"):
        list(read_archive(str(tmp_path / "a.tar"), tmp_path, lambda key: True))
    (tmp_path / "a.tar").write_bytes(header("x.mp4", 1 << 62))  # would be read over to the end of time
    with pytest.raises(ArchiveError, match="cut short"):
        list(read_archive(str(tmp_path / "a.tar"), tmp_path, lambda key: True))

    with (tmp_path / f"{A}.mp4").open("wb") as file:
        file.truncate(1 << 30)
    command = ["tar", "--sparse", "--format=gnu", "-cf", "holes.tar", f"{A}.mp4"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "holes.tar").stat().st_size < 1 << 20
    assert list(read_archive(str(tmp_path / "holes.tar"), tmp_path, lambda key: True)) == []


def test_nothing_is_written_outside(tmp_path):
    names = ["../up_000000_000001.mp4", f"/tmp/{A}.mp4", "AAAAAAAAAAA;rm_000000_000001.mp4", f"{B}.sh", f"{C}.mp4/"]
    path = pack(tmp_path / "a.tar", dict.fromkeys(names, b"x"), "w")
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo(f"{D}.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    folder = tmp_path / "inside"
    folder.mkdir()
    before = set(tmp_path.iterdir())
    found = list(read_archive(str(path), folder, lambda key: True))
    assert {member.key for member in found} == {"up_000000_000001", A, C}
    assert {member.file.parent for member in found} == {folder}
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("tar:nowhere", "nor a folder"),
        ("tar:ftp://host/a.tar", "neither a path nor a URL"),
        ("tar:empty", "no archive there"),
        ("tar:list.txt", "x.zip' is no archive"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("https://host/a.tar\nhttps://host/x.zip\n")
    with pytest.raises(ValueError, match=said):
        archive_source(source)
