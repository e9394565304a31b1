"""The errors: one hierarchy, builtins that callers expect, and messages that help."""

from __future__ import annotations

import builtins
import inspect
import json
import pickle

import pytest

from inlay import errors
from inlay.errors import ConfigError, InlayError, MismatchError, TargetError, did_you_mean, nearest

CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("ConfigError", [ValueError]),
        ("TargetError", [ConfigError, ValueError]),
        ("FileError", [InlayError]),
        ("MissingFileError", [errors.FileError, FileNotFoundError, OSError]),
        ("CorruptFileError", [errors.FileError, ValueError]),
        ("UnsafeFileError", [errors.FileError, ValueError]),
        ("VersionError", [errors.FileError, ValueError]),
        ("MismatchError", [ValueError]),
        ("BaseMismatchError", [MismatchError]),
        ("NumericsError", [ArithmeticError]),
        ("StateError", [RuntimeError]),
        ("ResumeError", [RuntimeError]),
        ("EndpointError", [RuntimeError]),
        ("MissingExtraError", [ImportError]),
        ("DataError", [ValueError]),
    ],
)
def test_each_is_ours_and_the_builtin_that_is_caught_elsewhere(name: str, parents: list[type]) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, InlayError) and all(issubclass(cls, p) for p in parents)
    assert name in (errors.__doc__ or ""), "the tree in the module's docstring names it"


def test_every_class_is_in_one_hierarchy_and_says_when() -> None:
    assert all(issubclass(c, (InlayError, errors.InlayWarning)) for c in CLASSES)
    assert all(c.__doc__ for c in CLASSES)
    assert issubclass(errors.InlayWarning, UserWarning) and not issubclass(errors.InlayWarning, InlayError)
    assert not {c.__name__ for c in CLASSES} & set(vars(builtins))


def test_a_config_error_says_given_allowed_and_hint() -> None:
    error = ConfigError.of("r", "4", "an integer", "Give a number.")
    assert str(error) == "r='4' is not allowed: expected an integer. Give a number."
    assert (error.field, error.value) == ("r", "4")
    assert str(ConfigError.of("r", 4, "less")) == "r=4 is not allowed: expected less."
    assert type(TargetError.of("x", 1, "y")) is TargetError


def test_long_values_are_cut() -> None:
    message = str(ConfigError.of("x", "a" * 10_000, "less"))
    assert len(message) < 180 and "..." in message
    assert ConfigError.of("x", "a" * 10_000, "less").value == "a" * 10_000


def test_a_mismatch_carries_its_keys() -> None:
    error = MismatchError("no", ["a"], ("b",), {"c": ((1,), (2,))})
    assert (error.missing, error.unexpected, error.misshapen) == (["a"], ["b"], {"c": ((1,), (2,))})
    assert MismatchError("no").missing == [] and MismatchError("no").misshapen == {}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_errors_cross_process_borders(cls: type[Exception]) -> None:
    """A data loader's or a launcher's worker sends its error home by pickle."""
    again = pickle.loads(pickle.dumps(cls("what went wrong")))
    assert type(again) is cls and str(again) == "what went wrong"


def test_the_nearest_names() -> None:
    assert nearest("qproj", ["q_proj", "k_proj", "norm", "q_proj"]) == ["q_proj", "k_proj"]
    assert did_you_mean("qproj", ["norm", "q_proj"]) == " Did you mean 'q_proj'?"
    assert did_you_mean("clasifier", ["classifier", "classifiers"]) == " Did you mean 'classifier' or 'classifiers'?"
    assert did_you_mean("xyz", ["q_proj"]) == "" == did_you_mean("x", [])


def test_an_optional_package_is_imported_or_its_extra_named() -> None:
    assert errors.optional("json", "train") is json
    with pytest.raises(errors.MissingExtraError, match=r"'nowhere_to_be_found'.*pip install 'inlay\[train\]'"):
        errors.optional("nowhere_to_be_found", "train")
