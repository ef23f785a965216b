"""Hostile and broken input: one case for each way in which a video or a list's row can be bad, with what becomes of it.

`python -m tests.hostile FOLDER` writes `videos/`, the lists `videos.csv`, `rows.csv`, `own.csv` and `classes.txt` there
for `kinetics-prep run`, and prints the table. Beside them lie a canary that no case may reach, and a video that a link
leads to.
"""

import gzip
import os
import random
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "canary.txt"
SECRET = "the canary's words"
NOWHERE = "http://127.0.0.1:9"
SHORT_SIDE = 64  # what the expected sizes are for
LABEL = "a"
Maker = Callable[[Path], None]


@dataclass(frozen=True)
class Video:
    """A video file, how it is made, and what becomes of it: stored with these numbers, or failed for this reason.

    `failure_path` says in a phrase what is being tried. Numbers that are None may be any; most are of a second.
    """

    name: str
    failure_path: str
    make: Maker
    reason: str | None = None
    message: str = ""  # a part of it
    frames: int | None = 25
    size: tuple[int, int] | None = (86, 64)
    duplicated: int | None = None
    dropped: int | None = None
    start: str = ""
    end: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a list, and what becomes of it: `reason` None means a clip, with its label as it stands there."""

    line: bytes
    reason: str | None
    message: str = ""


def ffmpeg(*arguments: object) -> None:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)


X264, FFV1 = "-c:v libx264 -pix_fmt yuv420p", "-c:v ffv1 -pix_fmt yuv420p"
TONE = "-f lavfi -i sine=duration=1"


def encoded(
    options: str = X264, size: str = "160x120", rate: str = "25", seconds: float = 1, source: str = "testsrc2"
) -> Maker:
    """A moving test picture, coded with the options given."""
    return from_tools(f"-f lavfi -i {source}=size={size}:rate={rate}:duration={seconds} {options}")


def lossless(options: str = "", **picture: Any) -> Maker:
    return encoded(f"-c:v ffv1 {options}", **picture)


def from_tools(options: str) -> Maker:
    return lambda path: ffmpeg(*options.split(), f"file:{path}")


def literal(content: bytes) -> Maker:
    return lambda path: path.write_bytes(content) and None


def changed(make: Maker, change: Callable[[bytes], bytes], suffix: str) -> Maker:
    """What `make` writes, with its bytes changed."""

    def apply(path: Path) -> None:
        whole = path.with_name(f"{path.stem}-whole{suffix}")
        make(whole)
        path.write_bytes(change(whole.read_bytes()))
        whole.unlink()

    return apply


def remuxed(make: Maker, suffix: str, options: str) -> Maker:
    """What `make` writes, its packets copied with the options given."""

    def apply(path: Path) -> None:
        whole = path.with_name(f"{path.stem}-whole{suffix}")
        make(whole)
        ffmpeg("-i", f"file:{whole}", "-c", "copy", *options.split(), f"file:{path}")
        whole.unlink()

    return apply


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def garbage_in_the_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + noise(third) + content[2 * third :]


def patched(after: bytes, offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """Put bytes in place, so far behind the first place where `after` stands."""

    def apply(content: bytes) -> bytes:
        place = content.index(after) + offset
        return content[:place] + new + content[place + len(new) :]

    return apply


def without(tag: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(tag, b"skip")


def gzip_bomb(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))


def tar_of_a_video(path: Path) -> None:
    whole = path.with_name("inside.mp4")
    encoded()(whole)
    with tarfile.open(path, "w") as tar:
        tar.add(whole, "inside.mp4")
    whole.unlink()


def png_of(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0) + bytes(4)


def gif_of(width: int, height: int) -> bytes:
    """Sixteen pictures of one colour, of which nearly nothing is stored."""
    picture = b"\x21\xf9\x04\x00\x04\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0)
    picture += b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + picture * 16 + b";"


def jpeg_frames_of(width: int, height: int) -> Callable[[bytes], bytes]:
    """JPEG's start-of-frame says how large the picture is."""

    def apply(content: bytes) -> bytes:
        parts = content.split(b"\xff\xc0\x00\x11\x08")
        return parts[0] + b"".join(
            b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + part[4:] for part in parts[1:]
        )

    return apply


def two_sizes(path: Path) -> None:
    first, second = path.with_name("first.ts"), path.with_name("second.ts")
    encoded()(first)
    encoded(f"{X264} -output_ts_offset 1", size="320x180")(second)
    path.write_bytes(first.read_bytes() + second.read_bytes())
    first.unlink()
    second.unlink()


def twice(content: bytes) -> bytes:
    return content + content


def noise_for_pictures(content: bytes) -> bytes:
    start = content.index(b"mdat") + 8
    end = content.index(b"moov") - 4
    return content[:start] + noise(end - start) + content[end:]


def without_the_first_keyframe(content: bytes) -> bytes:
    """A raw H.264 stream from the second picture on: parameters stay, the picture that all others need goes."""
    units = content.split(b"\x00\x00\x00\x01")
    kept = [unit for unit in units if not unit or unit[0] & 31 != 5]
    return b"\x00\x00\x00\x01".join(
        unit.split(b"\x00\x00\x01")[0] if unit and unit[0] & 31 in (7, 8) else unit for unit in kept
    )


def cover(path: Path) -> None:
    picture = path.with_name("cover.jpg")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x64", "-frames:v", "1", f"file:{picture}")
    sound = path.with_name(f"sound{path.suffix}")
    ffmpeg(*TONE.split(), f"file:{sound}")
    copied = "-map 0 -map 1 -c copy -disposition:v attached_pic"
    ffmpeg("-i", f"file:{sound}", "-i", f"file:{picture}", *copied.split(), f"file:{path}")
    sound.unlink()
    picture.unlink()


def subtitles(path: Path) -> None:
    text = path.with_name("subtitles.srt")
    text.write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n")
    ffmpeg("-i", f"file:{text}", f"file:{path}")
    text.unlink()


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside.mp4"
    encoded()(outside)
    path.symlink_to(outside)


def videos(url: str = NOWHERE) -> list[Video]:
    """All cases of videos; `url` is where playlists would have something fetched."""
    return [*usual_but_odd(), *times(), *pictures(), *streams(), *broken(), *no_videos(url), *bombs()]


def usual_but_odd() -> list[Video]:
    # fmt: off
    return [
        Video("good.mp4", "none: a good clip", encoded(), duplicated=0, dropped=0),
        Video("mislabelled.mp4", "WebM that is called .mp4", encoded("-f webm -c:v libvpx")),
        Video("bare.h264", "H.264 without a container", encoded(f"{X264} -f h264")),
        Video("no-index.avi", "AVI cut off before its index",
            changed(encoded("-c:v mpeg4"), lambda content: content[:content.rindex(b"idx1")], ".avi")),
        Video("-i.mp4", "a name that looks like an option", encoded()),
        Video("$(touch x);`touch y`|&.mp4", "a name that looks like a shell's words", encoded()),
        Video("<img src=x onerror=alert(1)>.mp4", "a name that is HTML", encoded()),
    ]
    # fmt: on


def times() -> list[Video]:
    gap = "-bsf:v setts=pts='PTS+if(gte(N,12),36000000,0)':dts='DTS+if(gte(N,12),36000000,0)'"
    # fmt: off
    return [
        Video("vfr.mkv", "frames at uneven times",
            lossless("-vf select='lt(n,8)+gt(n,40)+eq(mod(n,5),0)' -vsync vfr", rate="50")),
        Video("negative.mp4", "decoding times below zero",
            encoded(f"{X264} -use_editlist 0 -output_ts_offset -0.2 -avoid_negative_ts disabled")),
        Video("negative.flv", "timestamps below zero, which wrap around",
            encoded("-c:v flv -output_ts_offset -5 -avoid_negative_ts disabled")),
        Video("start-1000.ts", "the first timestamp is 1000 s", encoded(f"{X264} -output_ts_offset 1000")),
        Video("start-1000-cut.ts", "a cut where the first timestamp is 1000 s",
            encoded(f"{X264} -output_ts_offset 1000", seconds=2), start="0.5", end="1.5"),
        Video("again.ts", "timestamps that jump back", changed(encoded(X264), twice, ".ts"), frames=50),
        Video("gap.mkv", "ten hours between two frames", remuxed(lossless(), ".mkv", gap), "too-long"),
        Video("gap-cut.mkv", "a cut into ten hours without a frame",
            remuxed(lossless(), ".mkv", gap), "too-short", "0 frames", start="100", end="101"),
        Video("gap-filled.mkv", "a cut that ends in ten hours without a frame",
            remuxed(lossless(), ".mkv", gap), duplicated=13, start="0", end="1"),
        Video("edit-list.mp4", "an edit list that begins in the middle",
            remuxed(encoded(f"{X264} -bf 0 -g 5", seconds=2), ".mp4", "-ss 1")),
        Video("1000-fps.mkv", "1000 frames a second", lossless(size="32x24", rate="1000"), size=(86, 64), dropped=975),
        Video("1-fps.mkv", "one frame a second", lossless(rate="1", seconds=2), frames=50, duplicated=48),
        Video("no-seconds.mp4", "0 s: tracks and no frame",
            from_tools("-f lavfi -i testsrc2=duration=0.04 -c:v libx264 -frames:v 0"), "no-video-stream"),
        Video("one-frame.mp4", "a single frame", encoded(f"{X264} -frames:v 1"), "too-short", "1 frames"),
        Video("8-frames.mp4", "a frame less than the networks take",
            encoded(f"{X264} -frames:v 8"), "too-short", "8 frames"),
        Video("ten-hours.mkv", "ten hours, a frame an hour",
            lossless(rate="1/3600", seconds=36000), "too-long", "longer than 600 s"),
        Video("ten-hours-cut.mkv", "a cut near the end of ten hours",
            lossless(rate="1/3600", seconds=36000), duplicated=24, start="32400", end="32401"),
        Video("past-the-end.mp4", "a cut behind the end", encoded(), "too-short", "0 frames", start="60", end="70"),
    ]
    # fmt: on


def pictures() -> list[Video]:
    # fmt: off
    return [
        Video("rotated.mp4", "rotation by metadata",
            remuxed(encoded(X264), ".mp4", "-metadata:s:v rotate=90"), size=(64, 86)),
        Video("portrait.mp4", "portrait", encoded(size="120x160"), size=(64, 86)),
        Video("wide-pixels.mkv", "pixels that are not square", lossless("-vf setsar=4/3"), size=(114, 64)),
        Video("1x1.mkv", "a picture of one pixel", lossless("-vf scale=1:1,setsar=1,format=gray"), size=(64, 64)),
        Video("33x17.mkv", "odd sizes", lossless("-vf scale=33:17,setsar=1,format=yuv420p"), size=(124, 64)),
        Video("long-strip.mkv", "2000 pixels by 2", lossless(size="2000x2"), "odd-shape", "2000x2"),
        Video("long-pixels.mkv", "square, with pixels a hundred times as wide as high",
            lossless("-vf setsar=100", size="64x64"), "odd-shape", "100:1"),
        Video("8k.mp4", "8K",
            encoded(f"{X264} -preset ultrafast", size="7680x4320", seconds=0.4, source="color"),
            frames=10, size=(114, 64)),
        Video("10-bit.mp4", "10 bits a sample", encoded("-c:v libx264 -pix_fmt yuv420p10le")),
        Video("hdr.mp4", "BT.2020 and PQ: the matrix is converted, brightness is not mapped",
            encoded("-c:v libx265 -x265-params log-level=error -pix_fmt yuv420p10le "
                "-color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc")),
        Video("grey.mkv", "no colour", lossless("-pix_fmt gray")),
        Video("444.mkv", "4:4:4", lossless("-pix_fmt yuv444p")),
        Video("full-range.mp4", "full range", encoded("-c:v mjpeg -pix_fmt yuvj420p")),
        Video("rgb.avi", "RGB without compression", encoded("-c:v rawvideo -pix_fmt bgr24")),
        Video("alpha.webm", "transparency beside the picture (VP9): left out",
            encoded("-c:v libvpx-vp9 -cpu-used 8 -pix_fmt yuva420p -vf format=yuva420p")),
        Video("alpha.mov", "transparency in the picture (RGBA): left out", encoded("-c:v qtrle -pix_fmt argb")),
        Video("interlaced.mpg", "two fields a frame: stored as they are, one picture",
            encoded("-c:v mpeg2video -flags +ilme+ildct -vf interlace", rate="50")),
        Video("two-sizes.ts", "another size and shape from the middle on: as the first picture",
            two_sizes, frames=50, duplicated=1, dropped=1),
    ]
    # fmt: on


def streams() -> list[Video]:
    second = "-f lavfi -i color=red:size=64x64:duration=1"
    # fmt: off
    return [
        Video("audio-only.mp4", "sound alone", from_tools(TONE), "no-video-stream", "streams: audio"),
        Video("cover.m4a", "sound with a cover picture", cover, "no-video-stream"),
        Video("cover.mp3", "MP3 with a cover picture", cover, "not-a-video"),
        Video("two-videos.mkv", "two video streams: the first counts", encoded(f"{second} -map 0 -map 1 {FFV1}")),
        Video("sound-first.mkv", "sound before the picture", encoded(f"{TONE} -map 1 -map 0 {FFV1}")),
        Video("subtitles.mkv", "subtitles alone", subtitles, "no-video-stream", "streams: subtitle"),
        Video("attachment.mkv", "a file attached",
            encoded(f"{FFV1} -attach {__file__} -metadata:s:t mimetype=text/x-python")),
        Video("timecode.mov", "a data stream", encoded(f"{X264} -timecode 01:00:00:00")),
        Video("unknown-codec.mp4", "a codec that nobody knows",
            changed(encoded(X264), lambda content: content.replace(b"avc1", b"zzz9"), ".mp4"), "corrupt"),
        Video("encrypted.mp4", "encrypted pictures",
            encoded(f"{X264} -encryption_scheme cenc-aes-ctr -encryption_key {'76' * 16} -encryption_kid {'a7' * 16}"),
            "corrupt"),
    ]
    # fmt: on


def broken() -> list[Video]:
    fast_start = encoded(f"{X264} -movflags +faststart -g 10", seconds=2)
    # fmt: off
    return [
        Video("empty.mp4", "no bytes", literal(b""), "empty-file"),
        Video("header-cut.mp4", "cut off within the header",
            changed(fast_start, lambda content: content[:100], ".mp4"), "no-video-stream", "streams: none"),
        Video("tail-cut.mp4", "cut off in the middle",
            changed(fast_start, lambda content: content[:len(content) // 2], ".mp4"), frames=None),
        Video("tail-cut.mkv", "cut off in the middle of an element",
            changed(encoded("-c:v mpeg4"), lambda content: content[:len(content) // 2], ".mkv"), frames=None),
        Video("no-moov.mp4", "MP4 without its table",
            changed(encoded(), without(b"moov"), ".mp4"), "not-a-video", "moov atom not found"),
        Video("garbage.mp4", "garbage in the middle of the pictures",
            changed(encoded(f"{X264} -g 10", seconds=2), garbage_in_the_middle, ".mp4"), frames=None),
        Video("garbage.ts", "garbage in the middle of the packets",
            changed(encoded(f"{X264} -g 10", seconds=2), garbage_in_the_middle, ".ts"), frames=None),
        Video("noise.mp4", "the pictures are noise, the table is whole",
            changed(encoded(X264), noise_for_pictures, ".mp4"), "corrupt"),
        Video("no-keyframe.h264", "a stream without its first keyframe",
            changed(encoded(f"{X264} -f h264 -g 1000"), without_the_first_keyframe, ".h264"), "too-short", "0 frames"),
        Video("samples.mp4", "four thousand million samples declared",
            changed(encoded(), patched(b"stsz", 12, b"\xff\xff\xff\xff"), ".mp4"), "not-a-video"),
        Video("box.mp4", "a box of 2**63 bytes",
            literal(b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom\x00\x00\x00\x01moov\x7f" + b"\xff" * 7),
            "no-video-stream"),
        Video("damaged.mkv", "garbage in the middle of a container without sizes",
            changed(encoded("-c:v mpeg4", seconds=8), garbage_in_the_middle, ".mkv"), frames=200),
    ]
    # fmt: on


def no_videos(url: str) -> list[Video]:
    closed = "Format not on whitelist"
    segment = f"{url}/segment.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        "mediaPresentationDuration='PT1S'><Period><AdaptationSet mimeType='video/mp4'><Representation id='1' "
        f"bandwidth='1'><BaseURL>{segment}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    svg = (
        f"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY x SYSTEM 'file:../{CANARY}'>]>"
        "<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'>"
        f"<text>&x;</text><image href='{url}/x.png'/></svg>"
    )
    # fmt: off
    return [
        Video("page.mp4", "HTML", literal(b"<!doctype html><title>Sign in</title>"), "not-a-video"),
        Video("file.m3u8.mp4", "HLS of a local file",
            lambda path: literal(hls.format(f"file://{path.parent.parent / CANARY}").encode())(path),
            "not-a-video", closed),
        Video("http.m3u8.mp4", "HLS of a URL",
            literal(hls.format(segment).encode()), "not-a-video", closed),
        Video("http.mpd.mp4", "DASH of a URL", literal(dash.encode()), "not-a-video"),
        Video("concat.mp4", "ffconcat of another video",
            literal(b"ffconcat version 1.0\nfile good.mp4\n"), "not-a-video", closed),
        Video("concat-http.mp4", "ffconcat of a URL",
            literal(f"ffconcat version 1.0\nfile {segment}\n".encode()), "not-a-video", closed),
        Video("session.mp4", "SDP that would listen to the net",
            literal(session.encode()), "not-a-video", closed),
        Video("picture.svg.mp4", "SVG that includes a file",
            literal(svg.encode()), "not-a-video"),
        Video("archive.mp4", "a tar archive", tar_of_a_video, "not-a-video"),
        Video("noise", "noise", literal(noise(100000)), "not-a-video"),
        Video("pipe.mp4", "a pipe that nobody writes to", os.mkfifo, "missing"),
        Video("folder.mp4", "a folder", Path.mkdir, "missing"),
        Video("device.mp4", "a link to an endless device", lambda path: path.symlink_to("/dev/zero"), "missing"),
        Video("loop.mp4", "a link to itself", lambda path: path.symlink_to(path.name), "missing"),
        Video("dangling.mp4", "a link to nothing", lambda path: path.symlink_to("nothing"), "missing"),
        Video("link.mp4", "a link out of the folder: whoever puts links into it wants them followed", link_outside),
    ]
    # fmt: on


def bombs() -> list[Video]:
    # fmt: off
    return [
        Video("gzip.mp4", "64 MB of zeros in 64 KB of gzip", gzip_bomb, "not-a-video"),
        Video("png.mp4", "PNG that claims 60000x60000", literal(png_of(60000, 60000)), "not-a-video"),
        Video("gif.gif", "GIF that claims 60000x60000", literal(gif_of(60000, 60000)), "corrupt"),
        Video("large.gif", "GIF of 8192x8192 in 500 bytes", literal(gif_of(8192, 8192)), "too-large"),
        Video("jpeg.avi", "JPEG pictures that claim 16384x16384 in an AVI of 160x120",
            changed(encoded("-c:v mjpeg -pix_fmt yuvj420p"), jpeg_frames_of(16384, 16384), ".avi"), "corrupt"),
        Video("16k.mp4", "16384x8192, plain black",
            encoded(f"{X264} -preset ultrafast", size="16384x8192", seconds=0.04, source="color"),
            "too-large", "16384x8192"),
    ]
    # fmt: on


def rows() -> list[Row]:
    """For a list of Kinetics: label,youtube_id,time_start,time_end,split."""
    ids = (
        b"../../etc/p",
        b"$(touch x)a",
        b";rm -rf /;a",
        b"AAAAA\0AAAAA",
        b'"AAAAA""AAAAA"',
        b"<b>AAAA</b>",
        b"a b c d e f",
    )
    times = (
        b"nan,1",
        b"0,inf",
        b"-1,1",
        b"0,1e999",
        b"1,0",
        b"0,999999999999",
        b"0x0,0x1",
        b"0,",
        "\u0660,\u0661".encode(),
    )
    return [
        Row(b"a,-----------,0,1,val", "missing", "-----------.*"),
        *(Row(b"a,%b,0,1,val" % name, "bad-row", "malformed id") for name in ids),
        Row(b'a,"AAAAA', "bad-row", "unexpected end"),
        Row(b'AAAAA",0,1,val', "bad-row"),
        *(Row(b"a,AAAAAAAAAAA,%b,val" % pair, "bad-row") for pair in times),
        Row(b"a,AAAAAAAAAAA,0,1", "bad-row", "4 values in a row of 5 columns"),
        Row(b"a,AAAAAAAAAAA,0,1,val,,", "bad-row", "7 values"),
        Row(b"a,AAAAAAAAAAA,0,1,../../val", "bad-row", "malformed split"),
        Row(b"<img src=x>,AAAAAAAAAAA,0,1,val", "unknown-label"),
        Row(b"\x1b]0;title\x07,AAAAAAAAAAA,0,1,val", "bad-row", "label '\\x1b]0;title\\x07'"),
        Row("\u202egpj.exe,AAAAAAAAAAA,0,1,val".encode(), "bad-row", "label"),
        Row(b"caf\xe9,AAAAAAAAAAA,0,1,val", "bad-row", "label"),
        Row(b"%b,AAAAAAAAAAA,0,1,val" % (b"a" * 201), "bad-row", "up to 200 printable characters"),
        Row(b"%b,AAAAAAAAAAA,0,1,val" % (b"a" * 200_000), "bad-row", "up to 200 printable characters"),
    ]


def own_rows() -> list[Row]:
    """For a list of one's own: path,label,start,end,split."""
    return [
        Row(b"good.mp4,<script>alert(1)</script>,0,0.5,", None),
        Row(b"./good.mp4,a,0.25,1,", None),
        Row(b"../outside.mp4,a,,,", "bad-row", "no '..'"),
        Row(b"good.mp4/../../outside.mp4,a,,,", "bad-row", "no '..'"),
        Row(b"/etc/passwd,a,,,", "bad-row", "lies outside"),
        Row(b"go\0od.mp4,a,,,", "bad-row", "path 'go\\x00od.mp4'"),
        Row(b"%b.mp4,a,,," % (b"a" * 300), "bad-row", "255 bytes"),
        Row(b"%b.mp4,a,,," % (b"a/" * 3000), "bad-row", "path"),
        Row(b"%2e%2e/outside.mp4,a,,,", "missing"),
        Row(b"..\\outside.mp4,a,,,", "missing"),
        Row(b"~/.bashrc,a,,,", "missing"),
        Row(b"file:///etc/passwd,a,,,", "missing"),
        Row(b"concat:good.mp4|../canary.txt,a,,,", "missing"),
        Row(b"http://127.0.0.1/x.mp4,a,,,", "missing"),
        Row(b"good.mp4/x.mp4,a,,,", "missing"),
        Row(b"good.mp4,a,0,1e0,", "bad-row", "no number of seconds"),
    ]


def write(folder: Path, cases: Iterable[Video]) -> None:
    """Write the files of `cases` below `folder/videos`, and the lists and the canary beside it."""
    (folder / "videos").mkdir(parents=True)
    (folder / CANARY).write_text(SECRET)
    lines = ["path,label,start,end"]
    for case in cases:
        case.make(folder / "videos" / case.name)
        lines.append(f"{case.name},{LABEL},{case.start},{case.end}")
    (folder / "videos.csv").write_text("\n".join(lines) + "\n")
    header = "\ufefflabel,youtube_id,time_start,time_end,split\n".encode()
    (folder / "rows.csv").write_bytes(header + b"".join(row.line + b"\n" for row in rows()))
    header = b"path,label,start,end,split\n"
    (folder / "own.csv").write_bytes(header + b"".join(row.line + b"\n" for row in own_rows()))
    (folder / "classes.txt").write_text(f"{LABEL}\n<script>alert(1)</script>\n")


def main(folder: Path) -> None:
    cases = videos()
    write(folder, cases)
    for case in cases:
        print(f"{case.reason or 'ok':<16} {case.name:<40} {case.failure_path}")
    for row in (*rows(), *own_rows()):
        print(f"{row.reason or 'ok':<16} {row.line[:60]!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
