"""Lines for people: what happens, while it happens."""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Where lines go unless a caller takes them."""
    print(line, file=sys.stderr, flush=True)


def to_nobody(line: str) -> None:
    """Nowhere."""
