"""What vLLM reads of an adapter's folder, after its `lora/peft_helper.py` (0.33). SGLang's rules are among these."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inlay.io.folder import CONFIG_NAME, WEIGHTS_NAME, reading
from inlay.io.strict_json import read_json
from inlay.io.tensors import read_header

_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_HEADS = ("classifier", "score")
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?[AB](\.weight)?")
_PLAIN = "Convert it first: inlay convert --to lora, or inlay.as_plain_lora(view, name, new_name)."

_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("use_dora", bool, "DoRA is not read. Convert it with inlay.save_as_lora, or export it merged."),
    ("lora_bias", bool, "a bias of B is not read. Export it merged."),
    ("bias", lambda v: v not in (None, "none"), "trained biases are not read. Export it merged."),
    ("alora_invocation_tokens", bool, "Activated LoRA is not read."),
    ("layer_replication", bool, "replicated layers are not read."),
    ("use_bdlora", bool, "block-diagonal LoRA is not read."),
    ("use_qalora", bool, "QA-LoRA is not read."),
    (
        "modules_to_save",
        lambda v: bool(set(v or ()) - set(_HEADS)),
        f"of modules trained in full only {' and '.join(_HEADS)} are read. Export it merged.",
    ),
    (
        "init_lora_weights",
        lambda v: isinstance(v, str) and v not in _INITS,
        f"of inits named by a text only {', '.join(_INITS)} are read. {_PLAIN}",
    ),
    ("trainable_token_indices", bool, "trained rows of the embedding are not read. Export it merged."),
]
"""Field of `adapter_config.json`, whether its value is refused, and why."""


def rejected_by_vllm(folder: str | Path) -> list[str]:
    """Why vLLM would not load the adapter in a folder, or would load it wrongly; empty if it would load it.

    Raises what `inlay.io.folder.open_folder` raises of a folder that is not an adapter, or is damaged.
    """
    with reading(folder) as files:
        config = read_json(files.path(CONFIG_NAME))
        if not files.has(WEIGHTS_NAME):
            return [f"the weights are no {WEIGHTS_NAME}"]
        keys = list(read_header(files.path(WEIGHTS_NAME)))
    if config.get("peft_type") != "LORA":
        how = "Convert it with inlay.save_as_lora, or export it merged."
        return [f"peft_type is {config.get('peft_type')!r}: only LORA is read. {how}"]
    return [*_of_config(config), *_of_keys(keys)]


def _of_config(config: Mapping[str, Any]) -> list[str]:
    missing = [f"{name} is missing" for name in ("r", "lora_alpha", "target_modules") if not config.get(name)]
    return missing + [f"{name}={config[name]!r}: {why}" for name, bad, why in _RULES if bad(config.get(name))]


def _of_keys(keys: list[str]) -> list[str]:
    heads = tuple(f".{name}." for name in _HEADS)
    strange = [key for key in keys if not _KEY.fullmatch(key) and not any(head in key for head in heads)]
    if not strange:
        return []
    more = f" and {len(strange) - 1} more" if strange[1:] else ""
    return [f"the tensor {strange[0]!r}{more}: only lora_A, lora_B and lora_embedding_A, lora_embedding_B are read."]
