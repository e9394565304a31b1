"""The `target_modules` that methods of LoRA's family take when none are given, by the base's `model_type`.

The attention's query and value projections, or the fused one: the choice of the LoRA paper (2106.09685, 7.1), and the
table users of peft know. Vision and speech models are added to it, and diffusers' U-Net, by the name of its class (its
guides adapt the whole attention). Names are those of the earliest supported transformers; later ones are found through
its own conversion table (`inlay.hf.names`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.config import AdapterConfig

_Q_V = ["q_proj", "v_proj"]
_BY_TARGETS: list[tuple[str, list[str] | str]] = [
    ("llama llama4 mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text stablelm glm glm4", _Q_V),
    ("opt gpt_neo gptj bart mbart marian whisper clip clip_text_model clip_vision_model", _Q_V),
    ("bert roberta xlm-roberta electra layoutlm vit swin segformer", ["query", "value"]),
    ("t5 mt5 umt5", ["q", "v"]),
    ("bloom gpt_neox chatglm falcon RefinedWeb RefinedWebModel", ["query_key_value"]),
    ("gpt2 gpt_bigcode", ["c_attn"]),
    ("phi", [*_Q_V, "fc1", "fc2"]),
    ("deberta", ["in_proj"]),
    ("deberta-v2", ["query_proj", "value_proj"]),
    ("blip-2", r".*\.(q|v|q_proj|v_proj)"),  # whatever its language model calls them
    ("codegen", ["qkv_proj"]),
    ("mpt", ["Wqkv"]),
    ("UNet2DConditionModel", ["to_q", "to_k", "to_v", "to_out.0"]),
]

ATTENTION: dict[str, list[str] | str] = {kind: names for kinds, names in _BY_TARGETS for kind in kinds.split()}


@dataclass
class AttentionConfig(AdapterConfig):
    """An `AdapterConfig` whose method adapts the attention, unless told otherwise."""

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return ATTENTION.get(model_type or "")


_K_V = ["k_proj", "v_proj"]
# (model types, target_modules, feedforward_modules) of (IA)^3: keys, values and the second layer of the feed-forward
# block; where the projections are fused, the fused one. The entries that peft has say what peft's say. A string is a
# regular expression: for blocks with names that others use too, and layers that not every model of a type has.
_IA3: list[tuple[str, list[str] | str, list[str] | str]] = [
    ("llama mistral stablelm glm glm4", [*_K_V, "down_proj"], ["down_proj"]),
    ("llama4 llama4_text gemma gemma2 gemma3_text qwen2 qwen3", [*_Q_V, "down_proj"], ["down_proj"]),
    ("mixtral", _K_V, []),  # its experts are no layers
    ("opt", ["q_proj", "k_proj", "fc2"], ["fc2"]),
    ("bart phi", [*_Q_V, "fc2"], ["fc2"]),
    ("mbart marian whisper clip clip_text_model clip_vision_model", [*_K_V, "fc2"], ["fc2"]),
    ("gpt_neo", [*_Q_V, "c_proj"], ["c_proj"]),
    ("gptj", [*_Q_V, "fc_out"], ["fc_out"]),
    ("bert roberta xlm-roberta electra layoutlm", ["key", "value", "output.dense"], ["output.dense"]),
    ("deberta", ["in_proj", "output.dense"], ["output.dense"]),
    ("deberta-v2", ["key_proj", "value_proj", "output.dense"], ["output.dense"]),
    ("t5", ["k", "v", "wo"], ["wo"]),
    ("mt5 umt5", ["k", "v", "wi_1"], []),
    ("bloom", ["query_key_value", "mlp.dense_4h_to_h"], ["mlp.dense_4h_to_h"]),
    (
        "gpt_neox falcon chatglm RefinedWeb RefinedWebModel",
        ["query_key_value", "dense_4h_to_h"],
        ["dense_4h_to_h"],
    ),
    ("gpt2 gpt_bigcode", ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    ("codegen", ["qkv_proj", "fc_out"], ["fc_out"]),
    ("mpt", ["Wqkv", "down_proj"], ["down_proj"]),
    ("UNet2DConditionModel", ["to_k", "to_v", "ff.net.2"], ["ff.net.2"]),
    (
        "vit swin segformer",  # today's names, and those of before
        r".*\.(key|value|k_proj|v_proj|mlp\.(fc2|dense2)|(layer|blocks)\.\d+\.output\.dense)",
        r".*\.(fc2|dense2|dense)",
    ),
    (
        "blip-2",  # the query transformer, and a language model of OPT's or T5's kind
        r"(.*\.)?(qformer|language_model)\..*\.(key|value|k_proj|v_proj|k|v|fc2|wo|\d+\.output(_query)?\.dense)",
        r".*\.(fc2|wo|dense)",
    ),
]

IA3: dict[str, tuple[list[str] | str, list[str] | str]] = {
    kind: (targets, feedforward) for kinds, targets, feedforward in _IA3 for kind in kinds.split()
}

# what AdaLoRA and VB-LoRA, which choose among the layers themselves, adapt where that is more
_WIDER = [
    ("t5", ["q", "k", "v", "o", "wi", "wo"]),
    ("mt5", ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]),
    ("bart opt", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    ("deberta-v2", ["query_proj", "key_proj", "value_proj", "dense"]),
]

WIDER: dict[str, list[str] | str] = {**ATTENTION, **{kind: names for kinds, names in _WIDER for kind in kinds.split()}}
