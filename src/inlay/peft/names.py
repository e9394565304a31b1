"""What `peft` and its modules offer here, and what they do not: two tables, read by `inlay.peft.modules`.

To offer a name, add it to its module in `MODULES`; to add a module, add a line. Objects are imported when first used.
"""

from __future__ import annotations

import inlay

VERSION = "0.21.2"  # of peft, whose names these are

_PUBLIC = {name: f"inlay:{name}" for name in inlay.__all__}


def _from(home: str, *names: str) -> dict[str, str]:
    """name -> where it is; `"name=other"` for one that is called `other` there."""
    pairs = [name.partition("=") for name in names]
    return {name: f"{home}:{other or name}" for name, _, other in pairs}


def _public(*names: str) -> dict[str, str]:
    """Those of `names` that `inlay` has."""
    return {name: _PUBLIC[name] for name in names if name in _PUBLIC}


_MAPPINGS = _from(
    "inlay.peft.mappings",
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_MIXED_MODEL_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "get_peft_config",
)
_CONSTANTS = _from(
    "inlay.peft.constants",
    "ALLOWED_COMPUTE_DTYPES",
    "CONFIG_NAME",
    "DUMMY_MODEL_CONFIG",
    "DUMMY_TARGET_MODULES",
    "EMBEDDING_LAYER_NAMES",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "SAFETENSORS_WEIGHTS_NAME",
    "SEQ_CLS_HEAD_NAMES",
    "TOKENIZER_CONFIG_NAME",
    "TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING",
    "TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING",
    "UPCAST_DTYPES",
    "WEIGHTS_NAME",
)
_WRAPPERS = _from("inlay.peft.layers", "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper", "TrainableTokensWrapper")
_ERRORS = _from(
    "inlay.errors", "PeftError=InlayError", "PeftWarning=InlayWarning", "NoMatchingPeftModuleError=TargetError"
)
_FILES = {
    **_public("get_peft_model_state_dict", "set_peft_model_state_dict", "load_peft_weights"),
    **_public("get_base_model_state_dict", "set_base_model_state_dict"),
}
_KBIT = _from("inlay.hf.kbit", "prepare_model_for_kbit_training")
_TOOLS = _from(
    "inlay.peft.tools",
    "cast_mixed_precision_params",
    "shift_tokens_right",
    "_get_submodules",
    "transpose",
    "infer_device",
)
_LOFTQ = _public("replace_lora_weights_loftq")
_ENUMS = _public("PeftType", "TaskType")
_OPTIMIZERS = _public("create_loraplus_optimizer", "create_lorafa_optimizer")
_ADAPTER_CALLS = _from(
    "inlay.peft.functional", "cast_adapter_dtype", "delete_adapter", "set_adapter", "set_requires_grad"
)

# folder of peft.tuners -> its config, model and layer
_TUNERS = {
    "adalora": ("AdaLoraConfig", "AdaLoraModel", "AdaLoraLayer"),
    "boft": ("BOFTConfig", "BOFTModel", "BOFTLayer"),
    "c3a": ("C3AConfig", "C3AModel", "C3ALayer"),
    "fourierft": ("FourierFTConfig", "FourierFTModel", "FourierFTLayer"),
    "hra": ("HRAConfig", "HRAModel", "HRALayer"),
    "ia3": ("IA3Config", "IA3Model", "IA3Layer"),
    "ln_tuning": ("LNTuningConfig", "LNTuningModel", "LNTuningLayer"),
    "loha": ("LoHaConfig", "LoHaModel", "LoHaLayer"),
    "lokr": ("LoKrConfig", "LoKrModel", "LoKrLayer"),
    "lora": ("LoraConfig", "LoraModel", "LoraLayer"),
    "miss": ("MissConfig", "MissModel", "MissLayer"),
    "oft": ("OFTConfig", "OFTModel", "OFTLayer"),
    "poly": ("PolyConfig", "PolyModel", "PolyLayer"),
    "randlora": ("RandLoraConfig", "RandLoraModel", "RandLoraLayer"),
    "trainable_tokens": ("TrainableTokensConfig", "TrainableTokensModel", "TrainableTokensLayer"),
    "vblora": ("VBLoRAConfig", "VBLoRAModel", "VBLoRALayer"),
    "vera": ("VeraConfig", "VeraModel", "VeraLayer"),
}
# the same of those that sit around the whole model: config and its parts, and the module with the virtual tokens
_PROMPTS = {
    "adaption_prompt": (["AdaptionPromptConfig"], ["AdaptionPromptModel"]),
    "multitask_prompt_tuning": (["MultitaskPromptTuningConfig", "MultitaskPromptTuningInit"], []),
    "p_tuning": (["PromptEncoderConfig", "PromptEncoderReparameterizationType"], ["PromptEncoder"]),
    "prefix_tuning": (["PrefixTuningConfig"], ["PrefixEncoder"]),
    "prompt_tuning": (["PromptTuningConfig", "PromptTuningInit"], ["PromptEmbedding"]),
}
_CONFIGS = {
    **_public(*(config for config, _, _ in _TUNERS.values())),
    **_public(*(name for names, _ in _PROMPTS.values() for name in names), "EvaConfig", "LoraGAConfig"),
    **_from("inlay.peft.lora", "LoftQConfig", "LoraRuntimeConfig"),
}
_MODELS = _from(
    "inlay.peft.models", *(m for _, m, _ in _TUNERS.values()), *(m for _, models in _PROMPTS.values() for m in models)
)
_LORA_LAYERS = _from("inlay.peft.layers", "LoraLayer", "Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d")
_LORA_INITS = {
    "corda": {**_public("CordaConfig", "preprocess_corda")},
    "eva": {**_public("get_eva_state_dict", "initialize_lora_eva_weights")},
    "loraga": {**_public("preprocess_loraga")},
}

# module -> name in it -> "module:name" of Inlay
MODULES: dict[str, dict[str, str]] = {
    "peft": {
        **_PUBLIC,
        **_MAPPINGS,
        **_ERRORS,
        **_FILES,
        **_KBIT,
        **_CONFIGS,
        **_MODELS,
        **_from("inlay.peft.constants", "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING"),
        **_from("inlay.peft.models", "PeftMixedModel"),
        **_from("inlay.peft.tools", "cast_mixed_precision_params", "shift_tokens_right"),
        **_from("inlay.merge.convert", "convert_to_lora", "save_as_lora"),
    },
    "peft.auto": {name: home for name, home in _PUBLIC.items() if name.startswith("AutoPeftModel")},
    "peft.config": {
        **_public("PeftConfig", "PromptLearningConfig"),
        **_from("inlay.config", "PeftConfigMixin=PeftConfig"),
    },
    "peft.functional": {
        **_public("inject_adapter_in_model", "get_peft_model_state_dict", "set_peft_model_state_dict"),
        **_ADAPTER_CALLS,
    },
    "peft.helpers": _from(
        "inlay.peft.helpers",
        "check_if_peft_model",
        "disable_input_dtype_casting",
        "rescale_adapter_scale",
        "update_forward_signature",
        "update_generate_signature",
        "update_signature",
    ),
    "peft.import_utils": _from(
        "inlay.peft.imports",
        "is_aqlm_available",
        "is_bnb_4bit_available",
        "is_bnb_available",
        "is_diffusers_available",
        "is_eetq_available",
        "is_gptqmodel_available",
        "is_hqq_available",
        "is_inc_available",
        "is_optimum_available",
        "is_te_available",
        "is_te_pytorch_available",
        "is_torch_tpu_available",
        "is_torchao_available",
        "is_xpu_available",
    ),
    "peft.mapping": {**_MAPPINGS, **_public("inject_adapter_in_model")},
    "peft.mapping_func": {
        **_public("get_peft_model"),
        **_from("inlay.peft.mappings", "MODEL_TYPE_TO_PEFT_MODEL_MAPPING"),
    },
    "peft.mixed_model": _from("inlay.peft.models", "PeftMixedModel"),
    "peft.optimizers": _OPTIMIZERS,
    "peft.optimizers.lorafa": _public("create_lorafa_optimizer"),
    "peft.optimizers.loraplus": _public("create_loraplus_optimizer"),
    "peft.peft_model": {
        **{name: home for name, home in _PUBLIC.items() if name.startswith("PeftModel")},
        **_public("PeftConfig", "get_layer_status", "get_model_status"),
        **_from("inlay.status", "TunerLayerStatus", "TunerModelStatus"),
    },
    "peft.tuners": {**_CONFIGS, **_MODELS},
    **{
        f"peft.tuners.{folder}": {
            **_public(config),
            **_from("inlay.peft.models", model),
            **_from("inlay.peft.layers", layer),
        }
        for folder, (config, model, layer) in _TUNERS.items()
    },
    **{f"peft.tuners.{folder}.config": _public(config) for folder, (config, _, _) in _TUNERS.items()},
    **{f"peft.tuners.{folder}.layer": _from("inlay.peft.layers", layer) for folder, (_, _, layer) in _TUNERS.items()},
    **{f"peft.tuners.{folder}.model": _from("inlay.peft.models", model) for folder, (_, model, _) in _TUNERS.items()},
    **{
        f"peft.tuners.{folder}": {**_public(*configs), **_from("inlay.peft.models", *models)}
        for folder, (configs, models) in _PROMPTS.items()
    },
    **{f"peft.tuners.{folder}.config": _public(*configs) for folder, (configs, _) in _PROMPTS.items()},
    **{f"peft.tuners.{folder}.model": _from("inlay.peft.models", *models) for folder, (_, models) in _PROMPTS.items()},
    "peft.tuners.lokr.layer": {
        **_from("inlay.peft.layers", "LoKrLayer"),
        **_from("inlay.methods.lokr", "factorization=divided"),
    },
    "peft.tuners.lora": {
        **_public("LoraConfig", "EvaConfig", "LoraGAConfig", *(n for names in _LORA_INITS.values() for n in names)),
        **_from("inlay.peft.lora", "LoftQConfig", "LoraRuntimeConfig"),
        **_from("inlay.peft.models", "LoraModel"),
        **_LORA_LAYERS,
    },
    "peft.tuners.lora.config": {
        **_public("LoraConfig", "EvaConfig", "CordaConfig", "LoraGAConfig"),
        **_from("inlay.peft.lora", "LoftQConfig", "LoraRuntimeConfig"),
    },
    "peft.tuners.lora.layer": {
        **_LORA_LAYERS,
        **_public("LoraConfig"),
        **_from("inlay.peft.tools", "transpose"),
        **_from("inlay.peft.layers", "BaseTunerLayer"),
    },
    **{f"peft.tuners.lora.{part}": names for part, names in _LORA_INITS.items()},
    "peft.tuners.mixed": _from("inlay.peft.models", "MixedModel"),
    "peft.tuners.tuners_utils": {
        **_from("inlay.peft.layers", "BaseTunerLayer"),
        **_from("inlay.peft.models", "BaseTuner"),
        **_from("inlay.peft.tools", "check_target_module_exists", "onload_layer"),
        **_public("PeftConfig"),
    },
    "peft.utils": {
        **_CONSTANTS,
        **_WRAPPERS,
        **_ERRORS,
        **_ENUMS,
        **_FILES,
        **_KBIT,
        **_TOOLS,
        **_LOFTQ,
    },
    "peft.utils.constants": _CONSTANTS,
    "peft.utils.errors": _from("inlay.errors", "NoMatchingPeftModuleError=TargetError", "PeftError=InlayError"),
    "peft.utils.hotswap": _from(
        "inlay.hotswap",
        "check_hotswap_configs_compatible",
        "hotswap_adapter",
        "hotswap_adapter_from_state_dict",
        "prepare_model_for_compiled_hotswap",
    ),
    "peft.utils.integrations": _from(
        "inlay.peft.integrations",
        "dequantize_module_weight",
        "gather_params_ctx",
        "get_bnb_param_type",
        "init_empty_weights",
    ),
    "peft.utils.loftq_utils": _LOFTQ,
    "peft.utils.other": {
        **_CONSTANTS,
        **_WRAPPERS,
        **_ERRORS,
        **_KBIT,
        **_TOOLS,
        **_from("inlay.peft.tools", "get_pattern_key"),
        **_from("inlay.peft.fsdp", "fsdp_auto_wrap_policy"),
    },
    "peft.utils.peft_types": _ENUMS,
    "peft.utils.save_and_load": _FILES,
    "peft.utils.transformers_weight_conversion": _from(
        "inlay.hf.conversion", "build_peft_weight_mapping", "convert_peft_config_for_transformers"
    ),
}

# peft's methods that Inlay does not have: what their names begin with, and their folders
_METHODS = (
    *(
        "Adamss",
        "Beft",
        "Cartridge",
        "CPT",
        "Deft",
        "Delora",
        "Frod",
        "Glora",
        "Gralora",
        "Hira",
        "Lily",
        "OSF",
        "Peanut",
    ),
    *("Psoft", "Pvera", "Road", "Shadow", "Shira", "Supertuning", "TinyLora", "UniLora", "WaveFT", "XLora"),
)
_CARTRIDGE = "it belongs to Cartridge, a method that Inlay does not have"
_VARIANT = "it belongs to a variant of LoRA that Inlay does not have"
_INNER = (
    "it is a part of how peft is made, and Inlay is made otherwise: adapted layers keep their own class and forward"
)
# other names that peft has and Inlay has not -> why
_REASONS = {
    **dict.fromkeys(("ArrowConfig", "create_arrow_model", "BdLoraConfig", "KasaConfig"), _VARIANT),
    **dict.fromkeys(("MontecloraConfig", "MontecloraTrainerMixin", "VeloraConfig"), _VARIANT),
    **dict.fromkeys(("find_kappa_target_modules", "KappaTuneSelector"), "targets are named, not measured, here"),
    **dict.fromkeys(("compose_cartridge_adapters", "prompt_embeddings_from_past_key_values"), _CARTRIDGE),
    **dict.fromkeys(("initialize_kv_prefix_from_text", "initialize_kv_prefix_from_past_key_values"), _CARTRIDGE),
    "bloom_model_postprocess_past_key_value": "transformers' caches take a prefix as it is",
    "ParamWrapper": "`target_parameters` is not implemented",
    "create_riemannian_optimizer": "there are LoRA+ and LoRA-FA (create_loraplus_optimizer, create_lorafa_optimizer)",
    "register_peft_method": "a method is registered with inlay.registry.adapter",
    "DoraCaching": "DoRA's lengths are computed without the product that it caches",
    **dict.fromkeys(("Linear4bit", "Linear8bitLt", "bnb", "gptq", "awq", "hqq", "eetq", "aqlm", "torchao"), _INNER),
    **dict.fromkeys(("dora", "variants", "tp_layer", "check_adapters_to_merge", "RankAllocator"), _INNER),
}


def lacking(name: str) -> str:
    """The sentence for a name, with its module, that is not offered: that it is not, and why if that is known."""
    last = name.rpartition(".")[2]
    method = next((m for m in _METHODS if last.startswith((m, m.lower()))), None)
    why = _REASONS.get(last, _INNER if last.startswith("_") else None)
    if method is not None and why is None:
        why = f"{method} is a method that Inlay does not have"
    return (
        f"{name} is not offered by Inlay, which stands in for peft {VERSION} here{f': {why}' if why else ''}. Run the "
        "script with peft itself, or without this name."
    )
