"""The two enumerations of `adapter_config.json`: what the model is for, and which method it is."""

from __future__ import annotations

import enum
import importlib
from collections.abc import Iterable, Iterator


def _known() -> Iterable[str]:
    """Every registered method's name."""
    names: Iterable[str] = importlib.import_module("inlay.config").config_classes()
    return names


class TaskType(str, enum.Enum):
    """What the model is for; decides the view's class and which head is trained along."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class _PeftTypes(type):
    """`PeftType.LORA`, `list(PeftType)`: one member per registered config class."""

    def __getattr__(cls, name: str) -> PeftType:
        if not name.startswith("_") and name in _known():
            return PeftType(name)
        raise AttributeError(f"PeftType has no member {name!r}; known: {', '.join(sorted(_known()))}")

    def __iter__(cls) -> Iterator[PeftType]:
        return (PeftType(name) for name in _known())


class PeftType(str, metaclass=_PeftTypes):
    """The method's name as it stands in `adapter_config.json`, e.g. `"LORA"`. It is a `str`."""

    @property
    def value(self) -> str:
        return str(self)

    name = value
