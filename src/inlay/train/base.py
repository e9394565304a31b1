"""The base of a run and its tokenizer, and how it is asked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from inlay.data import BadRow, Chat, Row, known_formats
from inlay.errors import MissingFileError
from inlay.train.recipe import FULL, Recipe

_QUANTIZED: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def load_tokenizer(recipe: Recipe, folder: Path | None = None) -> Any:
    """The base's tokenizer, or the one saved in a folder."""
    return _loaded(AutoTokenizer, recipe, folder)


def load_model(recipe: Recipe, folder: Path | None = None) -> Any:
    """The base, or the model saved in a folder. Weights that are trained in full are float32 unless the recipe says."""
    dtype = recipe.model.dtype
    if dtype == "auto" and recipe.adapter.method == FULL:
        dtype = "float32"
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if recipe.model.quantize != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            **_QUANTIZED[recipe.model.quantize],
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    return _loaded(AutoModelForCausalLM, recipe, folder, **options)


def load_config(recipe: Recipe) -> Any:
    """The base's config."""
    return _loaded(AutoConfig, recipe, None)


def _loaded(cls: Any, recipe: Recipe, folder: Path | None, **options: Any) -> Any:
    model = recipe.model
    if folder is None:
        options |= {"revision": model.revision or "main", "gguf_file": model.gguf_file}
        options = {k: v for k, v in options.items() if v is not None}
    try:
        return cls.from_pretrained(str(folder or model.name), trust_remote_code=model.trust_remote_code, **options)
    except OSError as error:
        raise MissingFileError(
            f"model.name={model.name!r} cannot be loaded: {str(error).splitlines()[0]} "
            "It has to be a folder with a model, or an id on the Hub."
        ) from error


def as_asked(prompt: str, format: str, tokenizer: Any, chat_template: str | None = None) -> str:
    """The text a model that was trained on this format is asked with.

    Formats that make a prompt of more than one text are asked with `prompt` as it is.
    """
    found, chat = known_formats()[format], Chat(tokenizer, chat_template)
    if found.complete:
        messages = [{"role": "user", "content": prompt}]
        template = {"chat_template": chat.template, "tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(messages, **template))
    shape = found.shapes[0]
    try:
        parts = found.parts(Row({**dict.fromkeys(shape, "-"), shape[0]: prompt}, frozenset(shape)), chat)
    except BadRow:
        return prompt
    first = next((i for i, part in enumerate(parts) if part.trained), len(parts))
    return "".join(part.text for part in parts[:first]) or prompt


def answers(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int, complete: bool) -> list[str]:
    """The most likely continuation of each text, one after the other. Random states and the mode stay as they were."""
    texts, training = [], model.training
    states = random.getstate(), torch.random.get_rng_state()
    model.eval()
    try:
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not complete).to(model.device)
            inputs.pop("token_type_ids", None)
            with torch.no_grad():
                written = model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                )
            new = written[0, inputs["input_ids"].shape[1] :]
            texts.append(str(tokenizer.decode(new, skip_special_tokens=True)))
    finally:
        model.train(training)
        random.setstate(states[0])
        torch.random.set_rng_state(states[1])
    return texts
