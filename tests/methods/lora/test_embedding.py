"""LoRA on embeddings: loralib's formula, scaled tables, and the padding row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, get_peft_model
from tests.tiny import close, ids, llama, scramble

X = torch.tensor([[1, 2, 3], [3, 9, 0]])


def scaled() -> Any:
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    return BartScaledWordEmbedding(10, 4, padding_idx=1, embed_scale=3.0)


def view_of(table: Any, random: bool = True, **fields: Any) -> Any:
    base = nn.Sequential(table).eval()
    view = get_peft_model(base, LoraConfig(**{"target_modules": ["0"], "r": 3, "lora_alpha": 6, **fields}))
    return scramble(view, 0.5) if random else view


@pytest.mark.parametrize(
    ("table", "scale"), [(lambda: nn.Embedding(10, 4), 1), (lambda: nn.Embedding(10, 4, padding_idx=0), 1), (scaled, 3)]
)
@pytest.mark.parametrize("x", [X, X[0], X[0, 0], X[:0]], ids=["2d", "1d", "0d", "empty"])
def test_the_formula(table: Any, scale: float, x: torch.Tensor) -> None:
    view = view_of(table().double())
    adapter = view[0].adapters["default"]
    weight = view.unload()[0].weight + 2.0 * (adapter.B @ adapter.A).T
    close(view(x), scale * weight[x])
    assert adapter.A.shape == (3, 10) and adapter.B.shape == (4, 3)
    assert set(adapter.tensors()) == {"lora_embedding_A", "lora_embedding_B"}


def test_initial_values() -> None:
    adapter = view_of(nn.Embedding(1000, 40), random=False, r=16)[0].adapters["default"]
    assert not adapter.A.any() and abs(float(adapter.B.detach().std()) - 1) < 0.1
    for init, random in ((False, True), ("gaussian", False)):
        adapter = view_of(nn.Embedding(1000, 40), random=False, r=16, init_lora_weights=init)[0].adapters["default"]
        assert bool(adapter.A.any()) is random
    assert (
        abs(
            float(
                view_of(nn.Embedding(1000, 40), False, r=16, init_lora_weights=False)[0]
                .adapters["default"]
                .A.detach()
                .std()
            )
            - 1
        )
        < 0.1
    )


def test_a_fresh_adapter_is_the_identity_and_can_be_trained() -> None:
    view = view_of(nn.Embedding(10, 4).double(), random=False)
    assert torch.equal(view(X), view.unload()(X))
    view(X).sum().backward()
    adapter = view[0].adapters["default"]
    assert adapter.A.grad.abs().sum(0).nonzero().flatten().tolist() == [0, 1, 2, 3, 9]


def test_the_padding_row_is_not_trained() -> None:
    view = view_of(nn.Embedding(10, 4, padding_idx=3).double(), random=False)
    view(X).sum().backward()
    adapter = view[0].adapters["default"]
    assert adapter.A.grad.abs().sum(0).nonzero().flatten().tolist() == [0, 1, 2, 9]
    with torch.no_grad():
        adapter.A.sub_(adapter.A.grad)
    assert torch.equal(view(torch.tensor([3])), view.unload()(torch.tensor([3])))


def test_merging_a_scaled_table_keeps_its_scale() -> None:
    view = view_of(scaled().double())
    y = view(X)
    merged = view.merge_and_unload()
    close(merged(X), y)
    assert type(merged[0]).__name__ == "BartScaledWordEmbedding" and merged[0].embed_scale == 3.0


def test_dropout_does_not_apply() -> None:
    view = view_of(nn.Embedding(10, 4), lora_dropout=0.9)
    y = view(X)
    assert torch.equal(view.train()(X), y)


def test_a_tied_head_keeps_the_bases_weight() -> None:
    base = llama(dtype=torch.float64, tie_word_embeddings=True)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["embed_tokens"], r=2)))
    y = view(ids()).logits
    assert view.lm_head.weight is base.lm_head.weight
    merged = view.merge_and_unload()
    close(merged(ids()).logits, y)
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
    assert not torch.equal(merged.model.embed_tokens.weight, base.lm_head.weight)
    assert merged.config.tie_word_embeddings is False


def test_16_bits() -> None:
    view = view_of(nn.Embedding(10, 4).bfloat16())
    y, adapter = view(X), view[0].adapters["default"]
    assert y.dtype is torch.bfloat16 and adapter.A.dtype is torch.float32
    exact = view.unload()[0].weight.double() + 2.0 * (adapter.B.double() @ adapter.A.double()).T
    torch.testing.assert_close(y.double(), exact[X], rtol=0.02, atol=0.02)
