"""The methods of the matrix: every registered one, how its config is made, and where it cannot work and why."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import inlay
from inlay.config import PeftConfig, config_classes
from inlay.methods import METHODS
from tests.matrix.models import LAYERS, MODELS, Model

_PROMPT = {"num_virtual_tokens": 3}
FIELDS: dict[str, dict[str, Any]] = {
    "AdaLoraConfig": {"total_step": 10, "lora_alpha": 256},  # A and B begin small, so a step of E alone is short
    "AdaptionPromptConfig": {"adapter_len": 3, "adapter_layers": LAYERS},
    "C3AConfig": {"block_size": 16},
    "FourierFTConfig": {"n_frequency": 100},
    "MissConfig": {"r": 8},
    "MultitaskPromptTuningConfig": {**_PROMPT, "num_tasks": 2},
    "OFTConfig": {"oft_block_size": 16},
    "PrefixTuningConfig": _PROMPT,
    "PromptEncoderConfig": _PROMPT,
    "PromptTuningConfig": _PROMPT,
    "TrainableTokensConfig": {"token_indices": [7, 11]},
    "VBLoRAConfig": {"vector_length": 16},
}
"""Config class -> what it has to be told, or is too large by default for models this small."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("LoraConfig", {"use_dora": True}),
}
"""Methods that are an option of another's config class: name -> (that class, fields)."""

INPUTS: dict[str, dict[str, Any]] = {
    "MultitaskPromptTuningConfig": {"task_ids": [1, 0]},
    "PolyConfig": {"task_ids": [0, 0]},
}
"""Config class -> inputs that a call with such an adapter needs beside the model's own."""

RATES = (1e-2, 1e-3, 1e-4)
"""Learning rates of the one step, tried in turn: methods differ in how far they can go before the loss rises again."""


@dataclass(frozen=True)
class Reason:
    """Why some cells cannot work.

    Attributes:
        text: the reason, for the page.
        error: a regular expression for the message of the error that such a cell raises.
        methods: config classes.
        models: whether it is so for a model.
        bug: it should work. Such a cell is expected to fail, however it does; when it no longer fails, the suite does.
    """

    text: str
    error: str
    methods: Collection[str]
    models: Callable[[Model], bool]
    bug: bool = False


_TOKENS = ("PromptTuningConfig", "MultitaskPromptTuningConfig", "PromptEncoderConfig")
_NO_TEXT = {"vit", "swin", "segformer", "unet"}
_ADAPTION = {"gpt2", "opt", "gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "glm", "glm4"}

REASONS: list[Reason] = [
    Reason(
        "Images have no token embeddings that virtual tokens could go before, or be rows of.",
        "no token embeddings|no past keys and values|cannot adapt|no default target_modules",
        (*_TOKENS, "PrefixTuningConfig", "TrainableTokensConfig"),
        lambda m: m.family in _NO_TEXT,
    ),
    Reason(
        "Whisper's encoder takes sounds, and CLIP's text tower takes token ids only: virtual tokens have no place.",
        "no token embeddings",
        _TOKENS,
        lambda m: m.family in {"whisper", "clip"},
    ),
    Reason(
        'CLIP does not say which its input embedding is: give `target_modules=["token_embedding"]`.',
        "no default target_modules",
        ("TrainableTokensConfig",),
        lambda m: m.family == "clip",
    ),
    Reason(
        "A prefix is keys and values of past tokens, which this model takes none of.",
        "no past keys and values",
        ("PrefixTuningConfig",),
        lambda m: (
            m.family in {"deberta", "deberta-v2", "clip"} or (m.family in {"t5", "mt5"} and m.task == "TOKEN_CLS")
        ),
    ),
    Reason(
        "LLaMA-Adapter has to know how an architecture calls its attention; it knows this of the decoders named in its "
        "error.",
        "have no attention",
        ("AdaptionPromptConfig",),
        lambda m: m.family not in _ADAPTION,
    ),
    Reason(
        "The model has no biases.",
        "has no bias",
        ("BitFitConfig",),
        lambda m: m.family in {"llama", "mistral", "qwen3", "t5", "mt5"},
    ),
    Reason(
        "The targets also project the relative positions, which belong to no row of the batch and so to no task.",
        "task_ids: .* does not fit a batch of 1 rows",
        ("PolyConfig",),
        lambda m: m.family == "deberta-v2",
    ),
]
"""The only place that says what does not work. A cell has the first reason that fits it."""


def classes() -> dict[str, type[PeftConfig]]:
    """Every method's config class by its name, as they stand in `inlay.methods.METHODS`."""
    found = {name: getattr(inlay, name) for names in METHODS.values() for name in names}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and cls in config_classes().values()}


def methods() -> list[str]:
    """The names of all methods: config classes, and the variants."""
    return [*classes(), *VARIANTS]


def config(method: str, model: Model) -> PeftConfig:
    """A method's config for a model: nothing but the task, and what `FIELDS` says."""
    name, more = VARIANTS.get(method, (method, FIELDS.get(method, {})))
    return classes()[name](task_type=model.task_type, modules_to_save=list(model.head) or None, **more)


def reason(method: str, model: Model) -> Reason | None:
    """Why a method cannot work on a model; None if it has to."""
    return next((r for r in REASONS if method in r.methods and r.models(model)), None)


def shown(method: str) -> str:
    """What one writes to have a method."""
    name, more = VARIANTS.get(method, (method, {}))
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in more.items())})" if more else name


def cells() -> list[tuple[Model, str]]:
    """Every cell: model by model, so that a worker builds each but once."""
    return [(model, method) for model in MODELS for method in methods()]
