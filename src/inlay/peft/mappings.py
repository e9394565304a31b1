"""peft's tables: its types and tasks -> the classes that stand for them here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inlay.config import PeftConfig, config_classes
from inlay.model import PeftModel
from inlay.peft import models
from inlay.tasks import VIEW_CLASSES

_TUNERS = {t: cls for cls in vars(models).values() if isinstance(cls, models.Kind) for t in cls.types[::-1]}
# of those that peft can mix; here any view takes adapters of several methods
_MIXED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3")

PEFT_TYPE_TO_CONFIG_MAPPING: dict[str, type[PeftConfig]] = {c.peft_type: c for c in config_classes().values()}
PEFT_TYPE_TO_TUNER_MAPPING: dict[str, Any] = {t: _TUNERS[t] for t in PEFT_TYPE_TO_CONFIG_MAPPING if t in _TUNERS}
PEFT_TYPE_TO_MIXED_MODEL_MAPPING: dict[str, Any] = {t: _TUNERS[t] for t in _MIXED}
PEFT_TYPE_TO_PREFIX_MAPPING: dict[str, str] = dict.fromkeys(PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel.prefix)
MODEL_TYPE_TO_PEFT_MODEL_MAPPING: dict[str, type[PeftModel]] = {t: c for t, c in VIEW_CLASSES.items() if t is not None}


def get_peft_config(config_dict: Mapping[str, Any]) -> PeftConfig:
    """The config that `config_dict` describes; its `peft_type` says of which class."""
    return PeftConfig.from_dict(config_dict)
