"""Where folders and files may lie: on this machine or in a bucket.

Everything else works with paths and asks no further. A path into a bucket is a `upath.UPath`: it has the methods of
`pathlib.Path` that are used here, and the type is said to be `Path` for it, too.
"""

import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from upath import UPath

BUCKETS = ("gs", "s3")


def open_path(text: str) -> Path:
    """A path on this machine or `gs://bucket/name`, `s3://bucket/name`.

    Raises:
        ValueError: another scheme, or a bucket's URL without a name in it.
    """
    parts = urlsplit(text)
    if "://" not in text:
        return Path(text)
    if parts.scheme not in BUCKETS:
        raise ValueError(f"{text!r}: neither a path nor a URL that starts with gs:// or s3://")
    if not parts.netloc or not parts.path.strip("/"):
        raise ValueError(f"{text!r}: wants a name below the bucket, such as {parts.scheme}://bucket/k400")
    return cast(Path, UPath(text.rstrip("/"), **store_options(parts.scheme)))


def open_download(text: str) -> Path:
    """What is only read: a path, or a URL of http://, https://, gs://, s3://.

    Raises:
        ValueError: another scheme.
    """
    if text.startswith(("http://", "https://")):
        return cast(Path, UPath(text))
    return open_path(text)


def open_output(text: str) -> Path:
    """A dataset's folder on this machine or in a bucket of Google Storage.

    Raises:
        ValueError: elsewhere. Only a bucket that checks generations can tell that one run works there at a time.
    """
    if text.startswith("s3://"):
        raise ValueError(f"{text!r}: a dataset is written to a folder or to gs://…; s3:// is for lists and archives")
    return open_path(text) if "://" in text else Path(text).resolve()


def store_options(scheme: str) -> dict[str, Any]:
    """Options of the file system that reads buckets of a scheme, "gs" or "s3"."""
    # Others write there at the same time, so what a listing said a moment ago counts for nothing.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs" and "STORAGE_EMULATOR_HOST" in os.environ:
        options["token"] = "anon"  # noqa: S105 — a server that emulates Google Storage knows no accounts
    return options
