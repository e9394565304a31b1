"""The base of a run and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from inlay.data import Chat
from inlay.errors import ConfigError, MissingFileError
from inlay.hf import tokenizers
from inlay.recipe.recipe import FULL, Recipe

_QUANTIZED: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def load_tokenizer(recipe: Recipe, folder: Path | None = None) -> Any:
    """The base's tokenizer, or the one saved in a folder, with the recipe's chat template if it names one."""
    tokenizer = _loaded(tokenizers.load_tokenizer, recipe, folder)
    if recipe.data.chat_template is not None:
        tokenizer.chat_template = Chat(tokenizer, recipe.data.chat_template).template
    return tokenizer


def load_model(recipe: Recipe, folder: Path | None = None) -> Any:
    """The base, or the model saved in a folder. Weights that are trained in full are float32 unless the recipe says."""
    dtype = _dtype(recipe)
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if recipe.model.quantize != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            **_QUANTIZED[recipe.model.quantize],
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    return _loaded(AutoModelForCausalLM.from_pretrained, recipe, folder, **options)


def load_config(recipe: Recipe) -> Any:
    """The base's config."""
    return _loaded(AutoConfig.from_pretrained, recipe, None)


def bare_model(recipe: Recipe, config: Any = None) -> Any:
    """The base made of its config, in the dtype it will be trained in, for use under a device or mode without memory.

    Of "auto" the files are not asked, but the config; where it says nothing it is float32, as for a quantised base,
    whose other weights are. Raises ConfigError if the config is not that of a causal language model.
    """
    config, dtype = config or load_config(recipe), _dtype(recipe)
    if recipe.model.quantize != "none":
        dtype = "float32"
    found = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=found, trust_remote_code=recipe.model.trust_remote_code)
    except ValueError as error:
        raise ConfigError.of(
            "model.name", recipe.model.name, "a causal language model", str(error).splitlines()[0]
        ) from error


def _dtype(recipe: Recipe) -> str:
    return "float32" if (recipe.model.dtype, recipe.adapter.method) == ("auto", FULL) else recipe.model.dtype


def _loaded(load: Callable[..., Any], recipe: Recipe, folder: Path | None, **options: Any) -> Any:
    model = recipe.model
    if folder is None:
        options |= {"revision": model.revision or "main", "gguf_file": model.gguf_file}
        options = {k: v for k, v in options.items() if v is not None}
    try:
        return load(str(folder or model.name), trust_remote_code=model.trust_remote_code, **options)
    except (OSError, ValueError) as error:  # ValueError: its config is of no model that is known
        raise MissingFileError(
            f"model.name={model.name!r} cannot be loaded: {str(error).splitlines()[0]} "
            "It has to be a folder with a model, or an id on the Hub."
        ) from error
