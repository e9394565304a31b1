"""peft's tuner classes, for `isinstance(model.base_model, LoraModel)`: a tuner is one of those its adapters make it.

LoraModel(model, config, "default")     changes `model` in place, as `inject_adapter_in_model` does
"""

from __future__ import annotations

import types
from typing import Any

from inlay.config import PeftConfig
from inlay.inject import inject_adapter_in_model
from inlay.layer import Own
from inlay.model import PeftModel
from inlay.prompt.p_tuning import PromptEncoder
from inlay.prompt.prefix_tuning import Prefix
from inlay.prompt.prompt_tuning import PromptEmbedding
from inlay.tuner import Tuner
from inlay.view import ViewNames

__all__ = ["BaseTuner", "PeftMixedModel", "PrefixEncoder", "PromptEmbedding", "PromptEncoder"]

BaseTuner = Tuner
PeftMixedModel = PeftModel  # any view takes adapters of several methods
PrefixEncoder = Prefix


class InjectedTuner(Tuner):
    """The tuner of a model that was changed in place: what views do with adapters, done to it."""

    def __getattr__(self, name: str) -> Any:
        own = vars(PeftModel).get(name, vars(ViewNames).get(name))
        if isinstance(own, (property, Own)):
            return own.__get__(self._view)
        if isinstance(own, types.FunctionType) and not name.startswith("_") and name not in ("forward", "generate"):
            return types.MethodType(own, self._view)
        return getattr(self._view, name)


class Kind(type):
    """A class of tuners, told by their adapters' types; making one changes a model in place."""

    types: tuple[str, ...]

    def __instancecheck__(cls, value: Any) -> bool:
        if "types" not in cls.__dict__:
            return super().__instancecheck__(value)
        return isinstance(value, Tuner) and any(str(c.peft_type) in cls.types for c in value.peft_config.values())

    def __call__(cls, model: Any, config: Any, adapter_name: str = "default", **kwargs: Any) -> Any:
        given = config if isinstance(config, PeftConfig) else config[adapter_name]
        return InjectedTuner(inject_adapter_in_model(given, model, adapter_name, **kwargs))


def _model(name: str, *of: str) -> Any:
    body = {"types": of, "prefix": PeftModel.prefix, "__module__": __name__, "__doc__": f"Tuners of {' or '.join(of)}."}
    return Kind(name, (), body)


LoraModel = _model("LoraModel", "LORA", "ADALORA")
AdaLoraModel = _model("AdaLoraModel", "ADALORA")
AdaptionPromptModel = _model("AdaptionPromptModel", "ADAPTION_PROMPT")
BOFTModel = _model("BOFTModel", "BOFT")
C3AModel = _model("C3AModel", "C3A")
FourierFTModel = _model("FourierFTModel", "FOURIERFT")
HRAModel = _model("HRAModel", "HRA")
IA3Model = _model("IA3Model", "IA3")
LNTuningModel = _model("LNTuningModel", "LN_TUNING")
LoHaModel = _model("LoHaModel", "LOHA")
LoKrModel = _model("LoKrModel", "LOKR")
MissModel = _model("MissModel", "MISS")
OFTModel = _model("OFTModel", "OFT")
PolyModel = _model("PolyModel", "POLY")
RandLoraModel = _model("RandLoraModel", "RANDLORA")
TrainableTokensModel = _model("TrainableTokensModel", "TRAINABLE_TOKENS")
VBLoRAModel = _model("VBLoRAModel", "VBLORA")
VeraModel = _model("VeraModel", "VERA")
MixedModel = Tuner
