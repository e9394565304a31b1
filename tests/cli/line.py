"""A command line, run in this process."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from inlay import cli


def exit_code(*args: object) -> int:
    """Of `inlay ARGS`."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in args])
    return int(caught.value.code or 0)


def command(name: str) -> Callable[..., int]:
    """`inlay NAME`: a function from its arguments to its exit code."""
    return functools.partial(exit_code, name)
