"""LN tuning: only the normalisation layers are trained (Zhao et al. 2023, arXiv 2312.11420)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from inlay.config import AdapterConfig
from inlay.core.copies import TrainedModule
from inlay.registry import adapter

_PRE_NORM = ["input_layernorm", "post_attention_layernorm", "norm"]
_GPT2 = ["ln_1", "ln_2", "ln_f"]
_SANDWICH = ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
_BART = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
# model types -> their normalisation layers. The entries that peft has mean what peft's mean. A string is a regular
# expression: for models whose options decide which layers there are, and for names that changed.
_BY_TARGETS: list[tuple[str, list[str] | str]] = [
    ("llama llama4 llama4_text mistral mixtral gemma glm", _PRE_NORM),
    ("stablelm", r".*\.(input_layernorm|post_attention_layernorm|norm)"),
    ("glm4", [*_PRE_NORM, "post_self_attn_layernorm", "post_mlp_layernorm"]),
    ("gemma2 gemma3_text", [*_PRE_NORM, *_SANDWICH]),
    ("qwen2 qwen3", ["post_attention_layernorm"]),
    ("phi", ["input_layernorm", "final_layernorm"]),
    ("bloom", ["input_layernorm", "post_attention_layernorm", "ln_f"]),
    (
        "falcon RefinedWeb RefinedWebModel",
        r".*\.(input_layernorm|post_attention_layernorm|ln_attn|ln_mlp|ln_f)",
    ),
    ("gpt_neox", ["input_layernorm", "post_attention_layernorm", "final_layer_norm"]),
    ("chatglm", ["input_layernorm", "post_attention_layernorm", "final_layernorm"]),
    ("gpt2 gpt_neo gpt_bigcode", _GPT2),
    ("gptj codegen", ["ln_1", "ln_f"]),
    ("mpt", ["norm_1", "norm_2", "norm_f"]),
    ("opt", ["self_attn_layer_norm", "final_layer_norm"]),
    ("bart marian", _BART),
    ("mbart whisper", [*_BART, "layer_norm"]),
    ("t5 mt5 umt5", ["layer_norm", "final_layer_norm"]),
    ("bert roberta xlm-roberta electra layoutlm deberta deberta-v2", ["LayerNorm"]),
    ("vit swin", ["layernorm_before", "layernorm_after", "layernorm"]),
    ("segformer", r".*\.(layernorm_before|layernorm_after|layer_norm_[12]|layer_norm(\.\d+)?)"),
    (
        "clip clip_text_model clip_vision_model",
        r"(.*\.)?(layer_norm[12]|final_layer_norm|pre_layrnorm|post_layernorm)",
    ),
    ("blip-2", r".*\.(layernorm|LayerNorm|final_layer_norm|self_attn_layer_norm)"),
    ("UNet2DConditionModel", r".*transformer_blocks\.\d+\.norm[123]"),
    ("llava", ["multi_modal_projector", *_PRE_NORM, "embed_tokens", "lm_head"]),
]
_DEFAULTS = {kind: names for kinds, names in _BY_TARGETS for kind in kinds.split()}


@dataclass
class LNTuningConfig(AdapterConfig, peft_type="LN_TUNING"):
    """y = M'(x), M' a trained copy of each normalisation layer M; any other module may be named too.

    `target_modules` default to the model type's normalisation layers: for the types that peft has a default for,
    peft's, which is not all of them everywhere.
    """

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return _DEFAULTS.get(model_type or "")


@adapter(LNTuningConfig, "module")
class LNTuning(TrainedModule):
    r"""y = W' * n(x) + b', with W' = W and b' = b to begin with: a private copy of the host, trained in full.

    x: (..., d)   W: (d,)   b: (d,), or none   n: the host's normalisation

    The copy keeps the host's dtype, also on 16-bit bases, as in peft: torch's norms take no other. Two such adapters in
    one host cannot be active together; merging leaves the copy in the host's place.
    """

    def tensors(self) -> dict[str, Tensor]:
        return {f"ln_tuning_layers.{key}": tensor for key, tensor in super().tensors().items()}
