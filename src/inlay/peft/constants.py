"""peft's constants: file names, and which modules a method adapts by default."""

from __future__ import annotations

from typing import Any

import torch

from inlay.config import config_class
from inlay.methods.targets import ATTENTION, IA3, WIDER

WEIGHTS_NAME = "adapter_model.bin"
SAFETENSORS_WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
EMBEDDING_LAYER_NAMES = ["embed_tokens", "lm_head"]
SEQ_CLS_HEAD_NAMES = ["score", "classifier"]
INCLUDE_LINEAR_LAYERS_SHORTHAND = "all-linear"
DUMMY_TARGET_MODULES = "dummy-target-modules"
DUMMY_MODEL_CONFIG = {"model_type": "custom"}
ALLOWED_COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UPCAST_DTYPES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


def _norms() -> dict[str, Any]:
    config: Any = config_class("LN_TUNING")()
    found = {kind: config.default_targets(kind) for kind in ATTENTION}
    return {kind: names for kind, names in found.items() if names is not None}


TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING: dict[str, Any] = dict(ATTENTION)
TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING: dict[str, Any] = dict(WIDER)
TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING: dict[str, Any] = dict(WIDER)
TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING: dict[str, Any] = {k: targets for k, (targets, _) in IA3.items()}
TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING: dict[str, Any] = {k: second for k, (_, second) in IA3.items()}
TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING: dict[str, Any] = _norms()
TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING: dict[str, Any] = {}  # caches need no treatment any more
