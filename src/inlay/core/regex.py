"""Regular expressions out of files: compiled only if matching them against module paths takes little time.

Python's engine backtracks: in the worst case it tries every way in which a pattern can be laid over a text. The number
of ways is estimated before the first match, on a log2 scale, from the parsed pattern:

    sequence     the sum of its parts
    a|b          the larger part's own, and log2 of how many parts can match at one place
    a{m,n}       n times a's own, and log2(n - m + 1)
    a*, a{m,}    one more free end if a itself matches in one way, else without bound

d free ends in a text of L characters count as log2 of C(L + d, d).
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from inlay.errors import TargetError

# the regex parser moved in Python 3.11
_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_MAX_LENGTH = 4000  # of a pattern
_PATH = 64  # L: characters of a module's path
_MAX_WAYS = 24.0  # log2; five free ends are 23.3, and the worst path is done within a second
_SECONDS = 1.0  # of computing, for all paths of a model


@functools.lru_cache(maxsize=16_384)
def compile_regex(pattern: str, field: str, any_prefix: bool = False) -> re.Pattern[str]:
    r"""`pattern` compiled, with `any_prefix` as `(?:.*\.)?pattern`.

    Raises TargetError, naming `field`, if it is no regular expression or one that may match in too many ways.
    """
    if len(pattern) > _MAX_LENGTH:
        raise TargetError.of(field, pattern, f"a regular expression of at most {_MAX_LENGTH} characters")
    full = rf"(?:.*\.)?(?:{pattern})" if any_prefix else pattern
    try:
        compiled, ways = re.compile(full), _total(_ways(_parser.parse(pattern)))
    except (re.error, RecursionError, OverflowError) as error:
        raise TargetError.of(field, pattern, "a regular expression", str(error)) from None
    if ways > _MAX_WAYS:
        raise TargetError.of(
            field,
            pattern,
            "a regular expression without a repeat inside a repeat, and with few repeats",
            "Such patterns can take exponential time to match; give a list of names instead.",
        )
    return compiled


def within_limits(pattern: str, field: str) -> Callable[[str], bool]:
    """Whether a text is matched as a whole by `pattern`. Raises TargetError once all calls took a second together."""
    regex, spent = compile_regex(pattern, field), 0.0

    def matches(text: str) -> bool:
        nonlocal spent
        if spent > _SECONDS:
            raise TargetError.of(
                field, pattern, "a regular expression that is matched quickly", "Give a list of names instead."
            )
        start = time.thread_time()
        found = regex.fullmatch(text) is not None
        spent += time.thread_time() - start
        return found

    return matches


def _total(ways: tuple[int, float]) -> float:
    ends, bits = ways
    return bits + math.log2(math.comb(_PATH + ends, ends)) if ends <= _PATH else math.inf


def _ways(tree: Iterable[tuple[Any, Any]]) -> tuple[int, float]:
    """(free ends, log2 of the other ways to match) of a parsed sequence."""
    ends, bits = 0, 0.0
    for op, arg in tree:
        more, extra = _ways_of(str(op), arg)
        ends, bits = ends + more, bits + extra
    return ends, bits


def _ways_of(kind: str, arg: Any) -> tuple[int, float]:
    if kind.endswith("_REPEAT"):
        low, high, body = arg
        ends, bits = _ways(body) if high else (0, 0.0)
        if high != _parser.MAXREPEAT:
            return high * ends, high * bits + math.log2(high - low + 1)
        return (1, 0.0) if not ends and not bits else (0, math.inf)
    if kind in ("SUBPATTERN", "ATOMIC_GROUP", "ASSERT", "ASSERT_NOT"):
        return _ways(arg[-1] if isinstance(arg, tuple) else arg)
    if kind == "BRANCH":
        return _ways_of_branch(arg[1])
    if kind == "GROUPREF_EXISTS":
        return _ways_of_branch([part for part in arg[1:] if part is not None])
    return 0, 0.0


def _ways_of_branch(parts: list[Any]) -> tuple[int, float]:
    ends, bits = max((_ways(part) for part in parts), key=_total)
    texts = [_literal(part) for part in parts]
    if all(text is not None for text in texts):  # only those that begin alike can match at one place
        overlap = max(sum(str(text).startswith(str(t)) for t in texts) for text in texts)
    else:
        overlap = len(parts)
    return ends, bits + math.log2(overlap)


def _literal(tree: Iterable[tuple[Any, Any]]) -> str | None:
    """The text that a parsed sequence is, or None if it is a pattern."""
    text = ""
    for op, arg in tree:
        part = chr(arg) if str(op) == "LITERAL" else _literal(arg[-1]) if str(op) == "SUBPATTERN" else None
        if part is None:
            return None
        text += part
    return text
