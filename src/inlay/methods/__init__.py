"""The methods that come with Inlay: module -> the public names in it. One line each.

Importing a method's module registers it (`inlay.registry.adapter`); `register_all` does so when a method is first
looked up. Importing this package imports none of them.
"""

from __future__ import annotations

import importlib

METHODS = {
    "inlay.methods.adalora": ["AdaLoraConfig"],
    "inlay.methods.bitfit": ["BitFitConfig"],
    "inlay.methods.boft": ["BOFTConfig"],
    "inlay.methods.bottleneck": ["BottleneckConfig"],
    "inlay.methods.c3a": ["C3AConfig"],
    "inlay.methods.fourierft": ["FourierFTConfig"],
    "inlay.methods.hra": ["HRAConfig"],
    "inlay.methods.ia3": ["IA3Config"],
    "inlay.methods.ln_tuning": ["LNTuningConfig"],
    "inlay.methods.loha": ["LoHaConfig"],
    "inlay.methods.lokr": ["LoKrConfig"],
    "inlay.methods.lora": ["CordaConfig", "EvaConfig", "LoraConfig", "LoraGAConfig"],
    "inlay.methods.miss": ["MissConfig"],
    "inlay.methods.oft": ["OFTConfig"],
    "inlay.methods.poly": ["PolyConfig"],
    "inlay.methods.randlora": ["RandLoraConfig"],
    "inlay.methods.trainable_tokens": ["TrainableTokensConfig"],
    "inlay.methods.vblora": ["VBLoRAConfig"],
    "inlay.methods.vera": ["VeraConfig"],
    "inlay.prompt.adaption_prompt": ["AdaptionPromptConfig"],
    "inlay.prompt.multitask_prompt_tuning": ["MultitaskPromptTuningConfig", "MultitaskPromptTuningInit"],
    "inlay.prompt.p_tuning": ["PromptEncoderConfig", "PromptEncoderReparameterizationType"],
    "inlay.prompt.prefix_tuning": ["PrefixTuningConfig"],
    "inlay.prompt.prompt_tuning": ["PromptTuningConfig", "PromptTuningInit"],
}


def register_all() -> None:
    """Imports every method's module."""
    for module in METHODS:
        importlib.import_module(module)
