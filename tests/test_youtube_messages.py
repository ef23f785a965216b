"""What yt-dlp says of videos, and the reasons that it stands for."""

import pytest

from pipeline import youtube
from pipeline.ledger import REASONS
from pipeline.youtube import reason_of

HINT = (
    ". Use --cookies-from-browser or --cookies for the authentication. See  "
    "https://github.com/yt-dlp/yt-dlp/wiki/FAQ#how-do-i-pass-cookies-to-yt-dlp  for how to manually pass cookies"
)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (f"Sign in to confirm you\u2019re not a bot{HINT}", "blocked"),
        ("Something. YouTube is requiring a captcha challenge before playback", "blocked"),
        ("All player responses are invalid. Your IP is likely being blocked by Youtube", "blocked"),
        ("Video unavailable. This content isn\u2019t available.", "blocked"),
        ("Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429>)", "throttled"),
        (
            "Video unavailable. This content isn't available, try again later. The current session has been "
            "rate-limited by YouTube for up to an hour.",
            "throttled",
        ),
        (f"Sign in to confirm your age. This video may be inappropriate for some users{HINT}", "age"),
        ("Sign in if you've been granted access to this video", "login"),
        (f"Private video. Sign in if you've been granted access to this video{HINT}", "private"),
        ("Video unavailable. This video is private", "private"),
        ("Premieres in 6 hours", "upcoming"),
        ("This live event will begin in 2 days.", "upcoming"),
        ("This live event has ended.", "upcoming"),
        ("This live stream recording is not available.", "removed"),
        ("Video unavailable. This video has been removed by the uploader", "removed"),
        ("This video has been removed for violating YouTube's policy on hate speech.", "removed"),
        ("Video unavailable. This video has been removed for violating YouTube's Terms of Service", "removed"),
        (
            "Video unavailable. This video is no longer available because the YouTube account associated with this "
            "video has been terminated.",
            "removed",
        ),
        (
            "Video unavailable. This video is no longer available because the uploader has closed their YouTube "
            "account.",
            "removed",
        ),
        ("Video unavailable. This video is no longer available due to a copyright claim by Example", "removed"),
        (
            "Video unavailable. This video contains content from Example, who has blocked it on copyright grounds",
            "removed",
        ),
        ("Video unavailable", "removed"),
        (
            "Video unavailable. This video contains content from Example, who has blocked it in your country on "
            "copyright grounds",
            "region",
        ),
        (
            "The uploader has not made this video available in your country\nThis video is available in Germany.\n"
            "You might want to use a VPN or a proxy server (with --proxy) to workaround.",
            "region",
        ),
        ("This video is not available from your location due to geo restriction", "region"),
        ("This video is available to this channel's members on level: One (or any higher level).", "login"),
        ("Join this channel to get access to members-only content like this video, and other perks.", "login"),
        ("This video is only available to Music Premium members", "login"),
        ("This video requires payment to watch.", "login"),
        ("This video is DRM protected", "encrypted"),
        ("Requested format is not available. Use --list-formats for a list of available formats", "fetch-failed"),
        (
            "The following content is not available on this app.. Watch on the latest version of YouTube.",
            "fetch-failed",
        ),
        ("No video formats found!", "fetch-failed"),
        ("Failed to extract any player response", "fetch-failed"),
        (
            "Unable to download API page: ('Connection aborted.', ConnectionResetError(104, 'Connection reset by "
            "peer')) (caused by TransportError)",
            "fetch-failed",
        ),
        ("Unable to download webpage: HTTP Error 503: Service Unavailable (caused by <HTTPError 503>)", "fetch-failed"),
        (
            "Unable to download API page: <urllib3.connection.HTTPSConnection object at 0x72dd0c0b2c10>: Failed to "
            "resolve 'www.youtube.com' ([Errno -3] Temporary failure in name resolution) (caused by TransportError)",
            "unreachable",
        ),
        ("[Errno 111] Connection refused (caused by TransportError('[Errno 111] Connection refused'))", "unreachable"),
        ("[Errno 101] Network is unreachable", "unreachable"),
        (
            "('Unable to connect to proxy', OSError('Tunnel connection failed: 407 Proxy Authentication'))",
            "unreachable",
        ),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate", "unreachable"),
        (
            "Unable to download API page: (<HTTPSConnection(host='www.youtube.com', port=443) at 0x1f029f5d150>, "
            "'Connection to www.youtube.com timed out. (connect timeout=20.0)')",
            "timeout",
        ),
        ("Unable to download webpage: The read operation timed out (caused by TransportError)", "timeout"),
        ("Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)", "missing"),
    ],
)
def test_what_yt_dlp_says(message, reason):
    warning = "WARNING: [youtube] Video unavailable, says a client that is tried first\n"
    assert reason_of(f"{warning}ERROR: [youtube] abcdefghijk: {message}") == reason
    assert reason in REASONS


def test_what_was_refused_is_told_from_what_yt_dlp_warned_of():
    assert reason_of("ERROR: unable to download video data: HTTP Error 403: Forbidden") == "blocked"
    assert reason_of("HTTP Error 403: Forbidden") == "blocked"
    assert reason_of("WARNING: HTTP Error 403: Forbidden\nERROR: [youtube] a: This video is private") == "private"
    assert {reason for _, reason in youtube.MESSAGES} <= set(REASONS)
