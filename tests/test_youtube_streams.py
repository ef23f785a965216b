"""Which of a video's streams yt-dlp is asked for."""

import json
import subprocess
import sys

import pytest

from pipeline.youtube import format_arguments, reason_of

# Streams as YouTube offers them, by yt-dlp's names.
STORYBOARD = {"format_id": "sb0", "ext": "mhtml", "protocol": "mhtml", "vcodec": "none", "width": 320, "height": 180}
STORYBOARD |= {"acodec": "none", "format_note": "storyboard", "fps": 0.1}
SOUND = {"format_id": "140", "ext": "m4a", "vcodec": "none", "acodec": "mp4a.40.2", "filesize": 3_000_000}
CODECS = {"avc1.4d401e": (133, 60), "vp09.00.20.08": (242, 50), "av01.0.01M.08": (394, 40)}


def stream(format_id, width, height, codec="avc1.4d401e", size=1000, **more):
    found = {"format_id": format_id, "width": width, "height": height, "vcodec": codec, "acodec": "none", "fps": 30}
    found |= {"ext": "webm" if codec.startswith("vp") else "mp4", "filesize": size * 1000, "dynamic_range": "SDR"}
    return found | more


def table(*sizes, turned=False):
    """All sizes in all three codecs; avc1 ends at 1080 lines."""
    streams = [SOUND, STORYBOARD]
    for height in sizes:
        width = round(height * 16 / 9 / 2) * 2
        size = (height, width) if turned else (width, height)
        for codec, (number, bytes_per_line) in CODECS.items():
            if height <= 1080 or not codec.startswith("avc1"):
                streams.append(stream(f"{number}-{height}", *size, codec, height * bytes_per_line))
    return streams


ALL = (144, 240, 360, 480, 720, 1080, 1440, 2160)
HDR = [stream(f"694-{h}", h * 2, h, "vp09.02.51.10", h * 30, dynamic_range="HDR10") for h in (144, 360)]
TEN_BITS = {"dynamic_range": "HDR10"}
MUXED = stream("18", 640, 360, "avc1.42001E", 40_000, acodec="mp4a.40.2")
PLAYLIST = stream("230", 640, 360, "avc1.4D401E", protocol="m3u8_native", filesize=None) | {"ext": "mp4"}
PREMIUM = stream("616", 1920, 1080, "vp09.00.40.08", 900, format_note="Premium", source_preference=100)


@pytest.mark.parametrize(
    ("streams", "short_side", "chosen"),
    [
        (table(*ALL), 256, "133-360"),
        (table(*ALL), 240, "133-240"),
        (table(*ALL), 1080, "133-1080"),
        ([*table(*ALL), *HDR, MUXED, PLAYLIST, PREMIUM], 256, "133-360"),
        (table(*ALL, turned=True), 256, "133-360"),
        ([stream("narrow", 202, 360), *table(480)], 256, "133-480"),
        (table(144, 240), 256, "133-240"),
        ([SOUND, STORYBOARD, MUXED], 256, "18"),
        ([SOUND, PLAYLIST, stream("398-360", 640, 360, "av01.0.01M.08")], 256, "398-360"),
        ([SOUND, STORYBOARD, PLAYLIST], 256, "230"),
        ([*HDR, *(s for s in table(360) if s["format_id"].startswith(("242", "394", "140")))], 256, "242-360"),
        (
            [stream("sdr", 640, 360, "av01.0.01M.08", 500), stream("hdr", 640, 360, "av01.0.01M.10", 300, **TEN_BITS)],
            256,
            "sdr",
        ),
    ],
    ids=range(12),
)
def test_the_smallest_stream_that_is_large_enough(streams, short_side, chosen, tmp_path):
    told = [{"url": f"https://example.org/{s['format_id']}", "protocol": "https"} | s for s in streams]
    info = {"id": "abcdefghijk", "title": "t", "extractor": "youtube", "extractor_key": "Youtube", "formats": told}
    page = tmp_path / "info.json"
    found = []
    for order in (info["formats"], info["formats"][::-1]):
        page.write_text(json.dumps({**info, "formats": order}))
        command = [sys.executable, "-m", "yt_dlp", "--ignore-config", *format_arguments(short_side)]
        command += ["--load-info-json", str(page), "--simulate", "--print", "format_id"]
        found.append(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip())
    assert found == [chosen, chosen]


def test_sound_alone_is_not_fetched(tmp_path):
    (tmp_path / "info.json").write_text(
        json.dumps({"id": "a", "title": "t", "formats": [{**SOUND, "url": "https://example.org/140"}]})
    )
    command = [sys.executable, "-m", "yt_dlp", "--ignore-config", *format_arguments(256), "--simulate"]
    done = subprocess.run(
        [*command, "--load-info-json", str(tmp_path / "info.json")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode
    assert reason_of(done.stderr) == "fetch-failed"
