"""The `target_modules` that methods of LoRA's family take when none are given, by the base's `model_type`.

The attention's query and value projections, or the fused one: the choice of the LoRA paper (2106.09685, 7.1), and the
table users of peft know. Vision and speech models are added to it. Names are those of the earliest supported
transformers; later ones are found through its own conversion table (`inlay.hf.names`).
"""

from __future__ import annotations

_Q_V = ["q_proj", "v_proj"]
_QUERY_VALUE = ["query", "value"]

ATTENTION: dict[str, list[str] | str] = {
    **dict.fromkeys(
        ["llama", "llama4", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm", "glm", "glm4",
         "opt", "gpt_neo", "gptj", "bart", "mbart", "marian", "whisper", "clip", "clip_text_model", "clip_vision_model"],
        _Q_V,
    ),  # fmt: skip
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "electra", "layoutlm", "vit", "swin", "segformer"], _QUERY_VALUE),
    **dict.fromkeys(["t5", "mt5", "umt5"], ["q", "v"]),
    **dict.fromkeys(["bloom", "gpt_neox", "chatglm", "falcon", "RefinedWeb", "RefinedWebModel"], ["query_key_value"]),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], ["c_attn"]),
    "phi": [*_Q_V, "fc1", "fc2"],
    "deberta": ["in_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "blip-2": ["q", "v", *_Q_V],
    "codegen": ["qkv_proj"],
    "mpt": ["Wqkv"],
}
