"""Numbers as people read them."""

from __future__ import annotations

import pytest

from inlay.readable import count, duration, loss, share, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (9.99, "10.0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5 * 2**20, 3 * 2**30, 2**50)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "1024.0 TiB",
    ]


def test_losses_keep_places_that_say_something() -> None:
    assert [loss(v) for v in (2.12696, 0.05, 0.000123)] == ["2.127", "0.050", "0.000123"]


def test_counts_and_shares() -> None:
    assert count(2442240) == "2,442,240"
    assert [share(a, b) for a, b in ((1, 1), (0, 5), (178, 10000), (59.6, 100), (1, 0))] == [
        "100 %",
        "0 %",
        "1.78 %",
        "59.6 %",
        "-",
    ]
