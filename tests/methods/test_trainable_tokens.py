"""Trainable tokens as a method: rows of the embedding, the tied head, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import PeftModel, TrainableTokensConfig, get_peft_model
from inlay.errors import ConfigError, TargetError
from tests.tiny import close, ids, llama, mlp, scramble

TOKENS = [3, 0, 14]


def view_of(base: Any, **fields: Any) -> Any:
    return get_peft_model(base, TrainableTokensConfig(**{"token_indices": TOKENS, **fields}))


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_replace_the_tables(tied: bool) -> None:
    base = llama(dtype=torch.float64, tie_word_embeddings=tied)
    view = scramble(view_of(base))
    rows = view.model.embed_tokens.adapters["default"].rows
    other = llama(dtype=torch.float64, tie_word_embeddings=tied)
    with torch.no_grad():
        other.get_input_embeddings().weight[TOKENS] = rows
    close(view(ids()).logits, other(ids()).logits)
    assert view.peft_config["default"].target_modules == ["embed_tokens"]
    assert ("lm_head" in view._inlay.hosts) is tied
    assert view.get_nb_trainable_parameters()[0] == rows.numel() == 3 * 16
    merged = view.merge_and_unload()
    close(merged(ids()).logits, other(ids()).logits)


def test_a_tied_head_has_the_same_rows_after_loading(tmp_path: Path) -> None:
    view = scramble(view_of(llama(tie_word_embeddings=True)))
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(tie_word_embeddings=True), tmp_path, is_trainable=True)
    first, second = again.model.embed_tokens.adapters["default"], again.lm_head.adapters["default"]
    assert first.rows is second.rows and first.rows.requires_grad and not first.rows.is_meta
    assert torch.equal(again(ids()).logits, view(ids()).logits)
    again(ids()).logits.square().sum().backward()
    assert bool(first.rows.grad.abs().sum() > 0)


def test_both_ends_named_share_their_rows_too() -> None:
    view = view_of(llama(tie_word_embeddings=True), target_modules=["embed_tokens", "lm_head"])
    assert view.model.embed_tokens.adapters["default"].rows is view.lm_head.adapters["default"].rows
    alone = view_of(llama(tie_word_embeddings=True), target_modules=["lm_head"])
    assert list(alone._inlay.hosts) == ["lm_head"]
    apart = view_of(llama(), target_modules=["embed_tokens", "lm_head"])
    assert apart.model.embed_tokens.adapters["default"].rows is not apart.lm_head.adapters["default"].rows


def test_random_rows() -> None:
    view = view_of(llama(), init_weights=False)
    rows = view.model.embed_tokens.adapters["default"].rows
    assert not torch.equal(rows, view.model.embed_tokens.weight[TOKENS])
    assert abs(float(rows.detach().std()) - 1) < 0.4


def test_the_file_is_small(tmp_path: Path) -> None:
    view_of(llama()).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 3 * 16 * 4 + 400


def test_a_model_without_an_input_embedding() -> None:
    with pytest.raises(TargetError, match="There are no default target_modules"):
        view_of(mlp())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_indices": [1, 1]}, r"token_indices=\[1, 1\] is not allowed: expected distinct token indices"),
        ({"token_indices": []}, r"token_indices=\[\] is not allowed"),
        ({"token_indices": [40]}, r"token_indices=\[40\] is not allowed: .* from 0 to 39 of 'model.embed_tokens'"),
        ({"token_indices": [-1]}, r"token_indices=-1 is not allowed"),
        ({"token_indices": 3}, r"token_indices=3 is not allowed: expected a list"),
        ({"init_weights": 1}, r"init_weights=1 is not allowed"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(llama(), **fields)
