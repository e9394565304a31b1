"""Numbers as people read them."""

from __future__ import annotations

from pathlib import Path


def count(n: int) -> str:
    """`25,288`"""
    return f"{n:,}"


def size(n: float) -> str:
    """`17.4 MiB`"""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def duration(seconds: float) -> str:
    """`4 min 28 s`, in the two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    s = round(seconds)
    for unit, name, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if s >= unit:
            rest = s % unit // below
            return f"{s // unit} {name}" + (f" {rest} {part}" if rest else "")
    return f"{s} s"


def loss(value: float) -> str:
    """`2.127`; more places where three would show nothing."""
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """`3.62 %`"""
    if not whole:
        return "-"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.3g} %" if percent < 10 else f"{percent:.1f} %"


def place(name: str) -> str:
    """A file or folder by its last name; anything else, such as an id on the Hub, as it is."""
    return Path(name).name if Path(name).is_absolute() else name
