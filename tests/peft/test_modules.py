"""How a name that is not offered is refused, and what the modules below `peft` are."""

from __future__ import annotations

import pytest

from tests.peft.test_names import run

REASON = "is not offered by Inlay, which stands in for peft 0.21.2 here"


def refused(code: str) -> str:
    """The error of a line of code, as `Type: message`."""
    out = run(f"try:\n    {code}\nexcept Exception as error:\n    print(type(error).__name__, error, sep=': ')")
    return out.strip()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from peft import XLoraConfig", "ImportError: peft.XLoraConfig"),
        ("import peft; peft.XLoraConfig", "AttributeError: peft.XLoraConfig"),
        ("from peft.tuners.lora.layer import ParamWrapper", "ImportError: peft.tuners.lora.layer.ParamWrapper"),
        ("import peft.tuners.xlora.model", "ImportError: peft.tuners.xlora"),
        ("from peft.utils.other import no_such_thing", "ImportError: peft.utils.other.no_such_thing"),
        ("import peft; peft.utils.other.no_such_thing", "AttributeError: peft.utils.other.no_such_thing"),
    ],
)
def test_a_name_that_is_not_offered_is_refused_with_a_sentence(code: str, expected: str) -> None:
    assert refused(code).startswith(f"{expected} {REASON}")


def test_hasattr_says_no() -> None:
    assert run("import peft; print(hasattr(peft, 'CPTConfig'), hasattr(peft, 'LoraConfig'))") == "False True\n"


def test_submodules_are_attributes_without_being_imported() -> None:
    """As in peft, which imports all of them itself."""
    assert run("import peft; print(peft.tuners.lora.layer.LoraLayer.__name__)") == "LoraLayer\n"


def test_star_imports_and_dir() -> None:
    out = run(
        "from peft import *\nimport peft, peft.utils\n"
        "print(LoraConfig.__name__, 'LoraConfig' in dir(peft), set(peft.__all__) <= set(dir(peft)))"
    )
    assert out == "LoraConfig True True\n"


def test_the_metadata_is_there() -> None:
    assert run("from importlib.metadata import version; print(version('peft'))") == "0.21.2\n"


def test_importing_peft_imports_nothing_large() -> None:
    out = run("import sys, peft; print([m for m in ('torch', 'transformers') if m in sys.modules])")
    assert out == "[]\n"
