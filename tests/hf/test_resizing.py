"""`resize_token_embeddings` of a view: embeddings of its own, the base's as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay import LoraConfig, get_peft_model
from inlay.errors import StateError
from tests.tiny import VOCAB, ids, llama, outline, same, scramble, snapshot


def view_of(base: Any, **fields: Any) -> Any:
    return scramble(
        get_peft_model(base, LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **fields}))
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_base_keeps_its_embeddings(tied: bool) -> None:
    base = llama(tie_word_embeddings=tied)
    view = view_of(base)
    y, before, shape = view(ids()).logits, snapshot(base), outline(base)
    view.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert same(snapshot(base), before) and outline(base) == shape and base.config.vocab_size == VOCAB
    assert view.config.vocab_size == VOCAB + 3
    new = view(ids()).logits
    assert new.shape[-1] == VOCAB + 3 and torch.equal(new[..., :VOCAB], y)
    assert view(torch.tensor([[VOCAB + 2]])).logits.isfinite().all()
    ends = view.get_input_embeddings().weight, view.get_output_embeddings().weight
    assert (ends[0] is ends[1]) is tied and not any(p.requires_grad for p in ends)


def test_the_present_size_changes_nothing() -> None:
    base = llama()
    view = view_of(base)
    for size in (VOCAB, None):
        view.resize_token_embeddings(size)
        assert view.get_input_embeddings().weight is base.get_input_embeddings().weight


@pytest.mark.parametrize("fields", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_adapters_in_the_embeddings_are_not_lost(fields: dict[str, Any]) -> None:
    view = view_of(llama(), **fields)
    y = view(ids()).logits
    with pytest.raises(
        StateError, match="An adapter sits in the embeddings, with tensors of their present size: resize"
    ):
        view.resize_token_embeddings(VOCAB + 3)
    assert torch.equal(view(ids()).logits, y)
    view.resize_token_embeddings(VOCAB)
