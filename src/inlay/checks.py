"""Checks of config fields: each raises a ConfigError that names the field, the value and what is allowed."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Any

from inlay.errors import ConfigError, did_you_mean


def plain(value: Any) -> Any:
    """`value` as JSON has it: enums as their value, sets and tuples as lists (sets sorted)."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return value


def check_bool(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError.of(name, value, "True or False")


def check_int(name: str, value: object, low: int) -> None:
    """Raises ConfigError unless `value` is an integer (not a bool) of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError.of(name, value, f"an integer of at least {low}")


def check_positive(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is an integer of at least 1."""
    check_int(name, value, 1)


def check_number(name: str, value: object, low: float = -1e6, high: float = 1e6) -> None:
    """Raises ConfigError unless `value` is a finite number in [low, high]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError.of(name, value, f"a finite number from {low:g} to {high:g}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raises ConfigError unless `value` is one of `choices` (True is not 1)."""
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):
        hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise ConfigError.of(name, value, f"one of {', '.join(map(repr, choices))}", hint.strip())


def check_names(name: str, value: object, text: bool = True) -> Any:
    """A list of non-empty strings, from any collection of them; a single string passes when `text`; None passes."""
    if value is None or (text and isinstance(value, str) and value):
        return value
    many = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    if many and all(isinstance(n, str) and n for n in value):  # type: ignore[attr-defined]
        return sorted(value) if isinstance(value, set | frozenset) else list(value)  # type: ignore[call-overload]
    raise ConfigError.of(name, value, "a list of names" + (" or one string" if text else ""))


def check_indices(name: str, value: object) -> Any:
    """A list of integers of at least 0, from any collection of them; a single one passes, and None."""
    if isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping):
        for index in value:
            check_int(name, index, 0)
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if value is not None:
        check_int(name, value, 0)
    return value


def check_patterns(name: str, value: object, check: Any) -> None:
    """Raises ConfigError unless `value` is a dict from module name to a value that `check(field, v)` accepts."""
    if not isinstance(value, dict) or not all(isinstance(k, str) and k for k in value):
        raise ConfigError.of(name, value, "a dict from module name to value")
    if len(value) > 10_000:
        raise ConfigError.of(name, f"a dict of {len(value)} entries", "at most 10000 entries")
    for key, entry in value.items():
        check(f"{name}[{key!r}]", entry)
