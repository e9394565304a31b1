"""Trainable tokens: single rows of a table in full, and of the head tied to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, StateError, TargetError
from tests.tiny import close, ids, llama, net, same, scramble, snapshot

TOKENS = [3, 0, 14]


def view_of(base: Any, tokens: Any = TOKENS, **fields: Any) -> Any:
    fields.setdefault("target_modules", ["q_proj"])
    return get_peft_model(base, LoraConfig(trainable_token_indices=tokens, r=2, **fields))


def with_rows(base: Any, rows: torch.Tensor) -> Any:
    """`base` with those rows written into its table (and so into a tied head)."""
    with torch.no_grad():
        base.get_input_embeddings().weight[TOKENS] = rows
    return base


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_replace_the_tables(tied: bool) -> None:
    base = llama(dtype=torch.float64, tie_word_embeddings=tied)
    before = snapshot(base)
    view = view_of(base)
    assert torch.equal(view(ids()).logits, base(ids()).logits)
    adapter = view.model.embed_tokens.adapters["default"]
    assert torch.equal(adapter.rows, base.model.embed_tokens.weight[TOKENS])
    with torch.no_grad():
        adapter.rows.add_(torch.randn_like(adapter.rows))
    expected = with_rows(llama(dtype=torch.float64, tie_word_embeddings=tied), adapter.rows)(ids()).logits
    close(view(ids()).logits, expected)
    assert ("lm_head" in view._inlay.hosts) is tied
    assert same(snapshot(base), before)
    merged = view.merge_and_unload()
    close(merged(ids()).logits, expected)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied


def test_a_tied_head_shares_the_rows_and_they_are_saved_once(tmp_path: Any) -> None:
    view = view_of(llama(tie_word_embeddings=True))
    first, second = view.model.embed_tokens.adapters["default"], view.lm_head.adapters["default"]
    assert first.rows is second.rows
    assert first.tensors() == {"token_adapter.trainable_tokens_delta": first.rows} and second.tensors() == {}
    scramble(view)
    y = view(ids()).logits
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(tie_word_embeddings=True), tmp_path)
    assert torch.equal(again(ids()).logits, y)
    assert again.model.embed_tokens.adapters["default"].rows is again.lm_head.adapters["default"].rows
    assert not again.model.embed_tokens.adapters["default"].rows.is_meta


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_table(tied: bool) -> None:
    view = view_of(llama(dtype=torch.float64, tie_word_embeddings=tied))
    plain = llama(dtype=torch.float64, tie_word_embeddings=tied)
    x = ids(2, 6)
    view(input_ids=x, labels=x).loss.backward()
    plain(input_ids=x, labels=x).loss.backward()
    close(view.model.embed_tokens.adapters["default"].rows.grad, plain.model.embed_tokens.weight.grad[TOKENS])
    assert view.model.embed_tokens.weight.grad is None


def test_only_these_rows_are_counted_as_trainable() -> None:
    view = view_of(llama(tie_word_embeddings=True), target_modules=["q_proj"], layers_to_transform=[0])
    assert view.get_nb_trainable_parameters()[0] == 3 * 16 + 2 * (16 + 16)


def test_tables_by_name() -> None:
    view = view_of(llama(), {"embed_tokens": [1, 2]})
    assert view.model.embed_tokens.adapters["default"].indices.tolist() == [1, 2]
    view = view_of(net(), {"embed": [5]}, target_modules=["fc"])
    assert view.embed.adapters["default"].rows.shape == (1, 8)
    view = view_of(llama(), {"lm_head": [1, 2], "embed_tokens": [4]})
    assert set(view._inlay.hosts) >= {"lm_head", "model.embed_tokens"}
    scramble(view)
    head = view.lm_head.adapters["default"]
    hidden = view.model(ids()).last_hidden_state
    torch.testing.assert_close(view(ids()).logits[..., [1, 2]], hidden @ head.rows.T)


def test_rows_of_a_head_that_is_wider_than_its_input() -> None:
    """(out, in) with out = tokens: the rows have the input's width."""
    base = nn.ModuleDict({"fc": nn.Linear(4, 4), "head": nn.Linear(4, 20)}).double()
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], trainable_token_indices={"head": [19, 2]}))
    adapter = view["head"].adapters["default"]
    assert adapter.rows.shape == (2, 4)
    scramble(view)
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = base["head"](x).clone()
    expected[:, [19, 2]] = x @ adapter.rows.T + base["head"].bias[[19, 2]]
    close(view["head"](x), expected)
    close(view.merge_and_unload()["head"](x), expected)


def test_a_scaled_table_scales_the_rows() -> None:
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    base = nn.ModuleDict({"fc": nn.Linear(4, 4), "table": BartScaledWordEmbedding(10, 4, 1, embed_scale=3.0)})
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], trainable_token_indices={"table": [2]}))
    scramble(view)
    rows = view["table"].adapters["default"].rows
    y = view["table"](torch.tensor([1, 2]))
    torch.testing.assert_close(y, torch.cat([base["table"](torch.tensor([1])), 3 * rows]))


def test_16_bits() -> None:
    view = scramble(view_of(llama(dtype=torch.bfloat16, tie_word_embeddings=True)))
    assert view.model.embed_tokens.adapters["default"].rows.dtype is torch.float32
    assert view(ids()).logits.dtype is torch.bfloat16


@pytest.mark.parametrize("tokens", [[], [40], [-1], [1, 1], [1.0], ["a"], [True], {"embed_tokens": []}])
def test_indices_that_are_none(tokens: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"trainable_token_indices=.*distinct token indices from 0 to 39 of 'model.emb"
    ):
        view_of(llama(), tokens)


def test_the_message_names_the_wrong_ones() -> None:
    for tokens, shown in (([1, 40, -1], r"\[40, -1\]"), ([1, 1], r"\[1, 1\]")):
        with pytest.raises(ConfigError, match=rf"trainable_token_indices={shown} is not allowed"):
            view_of(llama(), tokens)


def test_with_another_adapter_on_the_same_table() -> None:
    """The rows take the table's place; what the other adds is added to them too, in whatever order."""
    base = llama(dtype=torch.float64)
    view = view_of(base)
    view.add_adapter("lora", LoraConfig(target_modules=["embed_tokens"], r=2))
    scramble(view, 0.5)
    table = view.model.embed_tokens
    rows, lora = table.adapters["default"].rows, table.adapters["lora"]
    weight = base.model.embed_tokens.weight.clone()
    weight[TOKENS] = rows
    expected = weight + lora.scale * (lora.B @ lora.A).T
    for order in (["default", "lora"], ["lora", "default"]):
        view.set_adapter(order)
        close(table(ids()), expected[ids()])
        view.merge_adapter()
        close(table.weight, expected)
        view.unmerge_adapter()
    view.add_adapter("more", LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5]))
    with pytest.raises(StateError, match="cannot be active together"):
        view.set_adapter(["default", "more"])


@pytest.mark.parametrize("tokens", [{"emb": [1]}, {"embed_tokens": [1], "emb": [1]}, {"norm": [1]}, {}])
def test_tables_that_are_none(tokens: Any) -> None:
    with pytest.raises(TargetError, match=r"trainable_token_indices=.*names of embeddings"):
        view_of(llama(), tokens)


def test_a_model_that_does_not_say_which_its_table_is() -> None:
    base = nn.ModuleDict({"fc": nn.Linear(4, 4), "embed_tokens": nn.Embedding(9, 4)})
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], trainable_token_indices=[1]))
    assert "embed_tokens" in view._inlay.hosts
    with pytest.raises(TargetError, match=r"as \{name: indices\}"):
        get_peft_model(net(), LoraConfig(target_modules=["fc"], trainable_token_indices=[1]))
