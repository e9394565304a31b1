"""Inlay: parameter-efficient fine-tuning over one frozen base. Names are those of peft.

Public names are imported when first used (PEP 562): `import inlay` itself imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inlay.methods import METHODS

_NAMES = {
    "inlay.comparison.columns": ["compare"],
    "inlay.config": ["AdapterConfig", "PeftConfig", "PeftType", "TaskType"],
    "inlay.conversion": ["convert"],
    "inlay.errors": ["InlayError", "InlayWarning"],
    "inlay.evaluation.scores": ["evaluate"],
    "inlay.exporting.exports": ["export"],
    "inlay.hf.auto": [
        "AutoPeftModel",
        "AutoPeftModelForCausalLM",
        "AutoPeftModelForFeatureExtraction",
        "AutoPeftModelForQuestionAnswering",
        "AutoPeftModelForSeq2SeqLM",
        "AutoPeftModelForSequenceClassification",
        "AutoPeftModelForTokenClassification",
    ],
    "inlay.hotswap": [
        "check_hotswap_configs_compatible",
        "hotswap_adapter",
        "hotswap_adapter_from_state_dict",
        "prepare_model_for_compiled_hotswap",
    ],
    "inlay.hf.kbit": ["prepare_model_for_kbit_training"],
    "inlay.inspection.folder": ["inspect_adapter"],
    "inlay.io.load": ["set_peft_model_state_dict"],
    "inlay.io.match": ["LoadReport"],
    "inlay.io.states": ["get_base_model_state_dict", "load_peft_weights", "set_base_model_state_dict"],
    "inlay.io.save": ["get_peft_model_state_dict"],
    "inlay.inject": ["inject_adapter_in_model"],
    "inlay.merge.convert": ["ConversionReport", "convert_to_lora", "save_as_lora"],
    "inlay.methods.lora.inits.corda": ["preprocess_corda"],
    "inlay.methods.lora.inits.eva": ["get_eva_state_dict", "initialize_lora_eva_weights"],
    "inlay.methods.lora.inits.loftq": ["replace_lora_weights_loftq"],
    "inlay.methods.lora.inits.lora_ga": ["preprocess_loraga"],
    "inlay.methods.lora.plain": ["as_plain_lora"],
    "inlay.model": ["PeftModel"],
    "inlay.optim": ["create_loraplus_optimizer", "create_lorafa_optimizer"],
    "inlay.prompt.config": ["PromptLearningConfig"],
    "inlay.status": ["get_layer_status", "get_model_status"],
    "inlay.tasks": [
        "PeftModelForCausalLM",
        "PeftModelForFeatureExtraction",
        "PeftModelForQuestionAnswering",
        "PeftModelForSeq2SeqLM",
        "PeftModelForSequenceClassification",
        "PeftModelForTokenClassification",
        "get_peft_model",
    ],
    "inlay.runs.run": ["Run"],
}
_HOME = {name: module for module, names in {**_NAMES, **METHODS}.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from inlay.comparison.columns import compare as compare
    from inlay.config import AdapterConfig as AdapterConfig
    from inlay.config import PeftConfig as PeftConfig
    from inlay.config import PeftType as PeftType
    from inlay.config import TaskType as TaskType
    from inlay.conversion import convert as convert
    from inlay.errors import InlayError as InlayError
    from inlay.errors import InlayWarning as InlayWarning
    from inlay.evaluation.scores import evaluate as evaluate
    from inlay.exporting.exports import export as export
    from inlay.inject import inject_adapter_in_model as inject_adapter_in_model
    from inlay.inspection.folder import inspect_adapter as inspect_adapter
    from inlay.io.load import set_peft_model_state_dict as set_peft_model_state_dict
    from inlay.io.match import LoadReport as LoadReport
    from inlay.io.save import get_peft_model_state_dict as get_peft_model_state_dict
    from inlay.methods.lora.config import LoraConfig as LoraConfig
    from inlay.model import PeftModel as PeftModel
    from inlay.runs.run import Run as Run
    from inlay.tasks import get_peft_model as get_peft_model


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
