"""How keys of a file find their tensors: each exactly once, under today's names, earlier ones, or mapped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import (
    LoadReport,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from inlay.errors import MismatchError, NumericsError, StateError
from inlay.inject import aliases_of
from inlay.io.match import match_keys

from ..tiny import llama, mlp, same, scramble, snapshot
from .test_load import DOWN_A, DOWN_B, UP_A, UP_B, X, lora, rewrite, trained, untouched


def test_get_and_set() -> None:
    view = trained()
    tensors = get_peft_model_state_dict(view)
    assert list(tensors) == [UP_A, UP_B, DOWN_A, DOWN_B] and not any(t.requires_grad for t in tensors.values())
    other = get_peft_model(mlp(), lora(), "other")
    ids = [id(p) for p in other.parameters()]
    assert set_peft_model_state_dict(other, tensors, "other") == LoadReport()
    assert torch.equal(other(X), view(X)) and [id(p) for p in other.parameters()] == ids
    assert same(get_peft_model_state_dict(other, adapter_name="other"), tensors)


def test_get_and_set_in_a_model_changed_in_place() -> None:
    tensors = get_peft_model_state_dict(trained())
    model = inject_adapter_in_model(lora(), mlp())
    set_peft_model_state_dict(model, tensors)
    in_place = {f"base_model.model.{key}": t for key, t in get_peft_model_state_dict(model).items()}
    assert same(in_place, tensors) and torch.equal(model(X), trained()(X))


def test_set_does_not_keep_the_callers_tensors() -> None:
    tensors = {k: t.clone() for k, t in get_peft_model_state_dict(trained()).items()}
    view = get_peft_model(mlp(), lora())
    set_peft_model_state_dict(view, tensors)
    before = view(X)
    for t in tensors.values():
        t.zero_()
    assert torch.equal(view(X), before)


def test_set_casts_to_the_adapters_dtype() -> None:
    tensors = {k: t.double() for k, t in get_peft_model_state_dict(trained()).items()}
    view = get_peft_model(mlp(), lora())
    set_peft_model_state_dict(view, tensors)
    assert same(snapshot(view), snapshot(trained()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({UP_A: None}, f"1 keys that this model and config need are missing: {UP_A}"),
        ({"base_model.model.left.lora_A.weight": torch.zeros(1)}, "1 keys have no place in this model"),
        ({DOWN_B: torch.zeros(8, 5)}, rf"{DOWN_B}: expected shape \(8, 4\), got \(8, 5\)"),
    ],
)
def test_set_is_all_or_nothing(change: dict[str, Tensor | None], said: str) -> None:
    given = {**get_peft_model_state_dict(trained()), **change}
    tensors = {k: t + 1 for k, t in given.items() if t is not None}
    view = get_peft_model(mlp(), lora())
    with untouched(view), pytest.raises(MismatchError, match=f"'the given state dict' does not fit.*{said}.*strict=Fa"):
        set_peft_model_state_dict(view, tensors)
    report = set_peft_model_state_dict(view, tensors, strict=False)
    assert report != LoadReport()
    after = get_peft_model_state_dict(view)
    skipped = {*report.missing_keys, *report.mismatched_keys}
    assert all(torch.equal(after[k], tensors[k]) for k in after.keys() - skipped) and len(skipped) < 2


def test_set_ignoring_sizes() -> None:
    tensors = {**get_peft_model_state_dict(trained()), DOWN_B: torch.zeros(8, 5)}
    view = trained(lora_alpha=1)
    report = set_peft_model_state_dict(view, tensors, ignore_mismatched_sizes=True)
    assert report.mismatched_keys == {DOWN_B: ((8, 4), (8, 5))}
    del tensors[UP_A]
    with untouched(view), pytest.raises(MismatchError) as caught:
        set_peft_model_state_dict(view, tensors, ignore_mismatched_sizes=True)
    assert UP_A in str(caught.value) and "expected shape" not in str(caught.value)


def test_unknown_adapters() -> None:
    view = trained()
    with pytest.raises(StateError, match=r"no adapter 'defalt'; loaded: 'default'. Did you mean 'default'"):
        set_peft_model_state_dict(view, {}, "defalt")
    with pytest.raises(StateError, match=r"no adapter 'x'"):
        get_peft_model_state_dict(view, adapter_name="x")


# --- names


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for key in list(tensors):
        tensors[key.replace(f".{old}.", f".{new}.")] = tensors.pop(key)


def test_key_mapping(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: renamed(t, "up", "block.rise"))
    with pytest.raises(MismatchError, match=r"block.rise.lora_A"):
        PeftModel.from_pretrained(mlp(), tmp_path)
    view = PeftModel.from_pretrained(mlp(), tmp_path, key_mapping={"block.rise": "up"})
    assert torch.equal(view(X), trained()(X))
    with pytest.raises(MismatchError, match=r"block.rise.lora_A"):  # to a place that does not exist
        PeftModel.from_pretrained(mlp(), tmp_path, key_mapping={"block.rise": "upp"})


@pytest.mark.parametrize("order", [1, -1])
def test_a_second_key_for_the_same_tensor_is_unexpected(tmp_path: Path, order: int) -> None:
    """Which of the two would win is nobody's to say."""
    trained().save_pretrained(tmp_path)
    more = {UP_A.replace("up", name): torch.zeros(4, 8) for name in ("rise", "lift")[::order]}
    rewrite(tmp_path, lambda t: t.update(more))
    base, mapping = mlp(), {"rise": "up", "lift": "up"}
    with untouched(base), pytest.raises(MismatchError) as caught:
        PeftModel.from_pretrained(base, tmp_path, key_mapping=mapping)
    assert set(caught.value.unexpected) == set(more)
    rewrite(tmp_path, lambda t: t.pop(UP_A))
    with untouched(base), pytest.raises(MismatchError) as caught:
        PeftModel.from_pretrained(base, tmp_path, key_mapping=mapping)
    assert len(caught.value.unexpected) == 1 and not caught.value.missing


def test_the_order_of_keys_does_not_matter() -> None:
    view = get_peft_model(mlp(), lora())
    tensors = get_peft_model_state_dict(trained())
    set_peft_model_state_dict(view, dict(reversed(tensors.items())))
    assert torch.equal(view(X), trained()(X))


def test_long_reports_are_cut() -> None:
    keys = [f"k{i}" for i in range(9)]
    report = LoadReport(keys, [], dict.fromkeys(keys, ((1,), (2,))))
    with pytest.raises(MismatchError) as caught:
        report.check("here", [])
    assert "9 keys" in str(caught.value) and "k3, ..." in str(caught.value) and "k4" not in str(caught.value)
    assert caught.value.missing == keys and list(caught.value.misshapen) == keys
    LoadReport().check("here", [])


# --- frozen parameters that come along


def with_embeddings(seed: int = 0) -> Any:
    return scramble(get_peft_model(llama(seed, tie_word_embeddings=False), LoraConfig(target_modules=["q_proj"])))


IDS = torch.arange(6)[None]


def test_saved_embeddings_are_set_in_the_view_only(tmp_path: Path) -> None:
    saved = with_embeddings()
    with torch.no_grad():
        saved.get_input_embeddings().weight[3] += 1
    saved.save_pretrained(tmp_path, save_embedding_layers=True)
    base = llama(tie_word_embeddings=False)
    before = snapshot(base)
    view = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(view(IDS).logits, saved(IDS).logits) and same(snapshot(base), before)
    assert view.lm_head.weight is base.lm_head.weight  # equal: nothing of its own
    assert view.get_input_embeddings().weight is not base.get_input_embeddings().weight
    assert not view.get_input_embeddings().weight.requires_grad


def test_saved_embeddings_of_another_size(tmp_path: Path) -> None:
    with_embeddings().save_pretrained(tmp_path, save_embedding_layers=True)
    base = llama(tie_word_embeddings=False, vocab_size=44)
    with untouched(base), pytest.raises(MismatchError) as caught:
        PeftModel.from_pretrained(base, tmp_path, check_base=False)
    assert "embed_tokens.weight: expected shape (44, 16), got (40, 16)" in str(caught.value)
    view = PeftModel.from_pretrained(base, tmp_path, check_base=False, ignore_mismatched_sizes=True)
    assert view.get_input_embeddings().weight is base.get_input_embeddings().weight


def test_match_of_nothing() -> None:
    match = match_keys(mlp(), {}, {}, None)
    assert (match.found, match.frozen, match.report) == ({}, {}, LoadReport())


def test_an_earlier_name_does_not_count_twice() -> None:
    """A tensor under its name of today and under an earlier one: the earlier one is unexpected."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    view = scramble(get_peft_model(transformers.ViTModel(config), LoraConfig(target_modules=["q_proj"])))
    path = "layers.0.attention.q_proj"
    earlier = aliases_of(view)()[path]
    key = f"base_model.model.{path}.lora_A.weight"
    old = key.replace(path, earlier)
    tensors = get_peft_model_state_dict(view)
    moved = {old if k == key else k: t + 1 for k, t in tensors.items()}
    with untouched(view), pytest.raises(MismatchError) as caught:
        set_peft_model_state_dict(view, {**tensors, old: torch.zeros_like(tensors[key])})
    assert caught.value.unexpected == [old] and not caught.value.missing
    assert set_peft_model_state_dict(view, moved) == LoadReport()
    assert torch.equal(get_peft_model_state_dict(view)[key], moved[old])


def test_set_refuses_what_is_not_finite() -> None:
    view = trained()
    before, state = snapshot(view), get_peft_model_state_dict(view)
    state[UP_B] = torch.full_like(state[UP_B], float("nan"))
    with pytest.raises(NumericsError, match=r"up\.lora_B\.weight' in the given state dict holds"):
        set_peft_model_state_dict(view, state)
    assert same(snapshot(view), before)
