"""The `target_modules` that methods of LoRA's family take when none are given, by the base's `model_type`.

The attention's query and value projections, or the fused one: the choice of the LoRA paper (2106.09685, 7.1), and the
table users of peft know. Vision and speech models are added to it. Names are those of the earliest supported
transformers; later ones are found through its own conversion table (`inlay.hf.names`).
"""

from __future__ import annotations

_Q_V = ["q_proj", "v_proj"]
_BY_TARGETS: list[tuple[str, list[str]]] = [
    ("llama llama4 mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text stablelm glm glm4", _Q_V),
    ("opt gpt_neo gptj bart mbart marian whisper clip clip_text_model clip_vision_model", _Q_V),
    ("bert roberta xlm-roberta electra layoutlm vit swin segformer", ["query", "value"]),
    ("t5 mt5 umt5", ["q", "v"]),
    ("bloom gpt_neox chatglm falcon RefinedWeb RefinedWebModel", ["query_key_value"]),
    ("gpt2 gpt_bigcode", ["c_attn"]),
    ("phi", [*_Q_V, "fc1", "fc2"]),
    ("deberta", ["in_proj"]),
    ("deberta-v2", ["query_proj", "value_proj"]),
    ("blip-2", ["q", "v", *_Q_V]),
    ("codegen", ["qkv_proj"]),
    ("mpt", ["Wqkv"]),
]

ATTENTION: dict[str, list[str]] = {kind: names for kinds, names in _BY_TARGETS for kind in kinds.split()}
