"""Every error Inlay raises, in one hierarchy.

A message says what was given, what is allowed, and what to do. Each class also derives from the
builtin a caller would expect (`ValueError`, `FileNotFoundError`, ...), so scripts written against
other libraries keep catching it.

    InlayError
    ├── ConfigError          a field of a config, or an argument, has a value that is not allowed
    │   └── TargetError      `target_modules` and the like match nothing, or something that cannot be adapted
    ├── FileError            a file of an adapter folder
    │   ├── MissingFileError     is not there
    │   ├── CorruptFileError     is not what it says it is
    │   ├── UnsafeFileError      would run code, or reach outside its folder
    │   └── VersionError         needs a newer Inlay
    ├── MismatchError        tensors and model do not belong together (nothing was changed)
    │   └── BaseMismatchError    the adapter was trained on another base
    ├── NumericsError        a tensor is not finite
    ├── StateError           the call is not allowed in the model's present state (merged, unknown adapter, ...)
    ├── ResumeError          a training run cannot be resumed exactly
    ├── MissingExtraError    a package that only this part of Inlay needs is not installed
    ├── DataError            rows of text to train on, or their format, cannot be used
    └── EndpointError        a model behind an API does not answer, and asking again will not help
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from typing import Any


class InlayError(Exception):
    """Base of every error raised by Inlay."""


class ConfigError(InlayError, ValueError):
    """A config field or argument has a value that is not allowed.

    Attributes:
        field: its name.
        value: what was given.
    """

    def __init__(self, message: str, field: str | None = None, value: object = None):
        super().__init__(message)
        self.field = field
        self.value = value

    @classmethod
    def of(cls, field: str, value: object, allowed: str, hint: str = "") -> ConfigError:
        """`field=value`, what is `allowed` instead, and an optional `hint` on what to do."""
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        text = f"{field}={shown} is not allowed: expected {allowed}."
        return cls(f"{text} {hint}" if hint else text, field, value)


class TargetError(ConfigError):
    """Module names given in a config match nothing in the model, or a module that cannot be adapted."""


class FileError(InlayError):
    """A file of an adapter folder cannot be used. The message names the file."""


class MissingFileError(FileError, FileNotFoundError):
    """A file that an adapter needs is not there."""


class CorruptFileError(FileError, ValueError):
    """A file is damaged: truncated, changed after it was saved, or not in its format."""


class UnsafeFileError(FileError, ValueError):
    """Reading the file would run code, or reach outside the adapter's folder."""


class VersionError(FileError, ValueError):
    """The file was written by a newer version and says that it must be understood to be used."""


class MismatchError(InlayError, ValueError):
    """Tensors of a file and the model do not belong together. The model is as it was before.

    Attributes:
        missing: keys the model needs and the file lacks.
        unexpected: keys the file has and the model has no place for.
        misshapen: key -> (expected shape, shape in the file).
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ):
        super().__init__(message)
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.misshapen = dict(misshapen or {})


class BaseMismatchError(MismatchError):
    """The adapter was trained on another base than the one it is being loaded onto."""


class NumericsError(InlayError, ArithmeticError):
    """A tensor holds NaN or infinity where only finite numbers make sense."""


class StateError(InlayError, RuntimeError):
    """The call is not allowed in the model's present state."""


class ResumeError(InlayError, RuntimeError):
    """A training run cannot be resumed exactly; the message names what is missing or differs."""


class MissingExtraError(InlayError, ImportError):
    """A package that an optional part of Inlay needs is not installed. The message names the extra that brings it."""


class DataError(InlayError, ValueError):
    """Rows of text to train on cannot be used: their format is not known, or none of them is left."""


class EndpointError(InlayError, RuntimeError):
    """A model behind an API cannot be asked: refused key, unknown model, a request it rejects, retries used up."""


class InlayWarning(UserWarning):
    """Something worth knowing that does not stop the call."""


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of `candidates` that look like `name`, best first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(candidates)), n=n, cutoff=0.4)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`" Did you mean 'a' or 'b'?"`, or the empty string when nothing looks like `name`."""
    close = nearest(name, candidates)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def optional(module: str, extra: str) -> Any:
    """The module of this name, imported now; `inlay[extra]` installs it. Raises MissingExtraError if there is none."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs the package of {module!r}, which cannot be imported ({error}). "
            f"Install it with: pip install 'inlay[{extra}]'"
        ) from error
