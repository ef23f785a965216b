"""Bytes and seconds as people read them."""

SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
TIMES = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))


def size(count: float) -> str:
    """A number of bytes, such as "1.53 GB"."""
    return next((_three(count / factor, unit) for unit, factor in SIZES if count >= factor), f"{count:.0f} B")


def duration(seconds: float) -> str:
    """A time, such as "2.5 h"; from two of a unit on in that unit."""
    return next((_three(seconds / factor, unit) for unit, factor in TIMES if seconds >= 2 * factor), f"{seconds:.2f} s")


def core_time(seconds: float) -> str:
    """Time of processors, such as "1,200 h": hours from two on, as it is paid for."""
    return _three(seconds / 3600, "h") if seconds >= 7200 else duration(seconds)


def _three(number: float, unit: str) -> str:
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
