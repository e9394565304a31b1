"""Merging: copy-on-write, all or nothing, several adapters, ties, and what a merged model still shares."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.core.adapted import is_adapted
from inlay.errors import NumericsError, StateError
from tests.tiny import Mlp, close, ids, llama, made, mlp, outline, same, scramble, snapshot

X = torch.ones(2, 8, dtype=torch.float64)


def view_of(base: Any = None, names: str = "a", **fields: Any) -> Any:
    """A view of a float64 Mlp with adapters of these names in both layers; the first is active."""
    base = mlp(dtype=torch.float64) if base is None else base
    fields = {"target_modules": ["up", "down"], "r": 2, **fields}
    view = get_peft_model(base, LoraConfig(**fields), names[0])
    for name in names[1:]:
        view.add_adapter(name, LoraConfig(**fields))
    return scramble(view)


def delta(view: Any, name: str, path: str = "up") -> torch.Tensor:
    adapter = view.get_submodule(path).adapters[name]
    return (adapter.scale * adapter.B @ adapter.A).detach()


def test_a_merged_host_has_its_own_weight_and_the_rest_is_shared() -> None:
    base = mlp(dtype=torch.float64)
    view = view_of(base, target_modules=["up"])
    view.merge_adapter()
    assert view.up.weight is not base.up.weight and view.up.bias is base.up.bias
    assert view.down.weight is base.down.weight
    close(view.up.weight, base.up.weight + delta(view, "a"))
    assert not view.up.weight.requires_grad
    view.unmerge_adapter()
    assert view.up._parameters is base.up._parameters and view.up.weight is base.up.weight


def test_several_at_once_one_after_the_other_and_inactive_ones() -> None:
    view = view_of(names="abc")
    w = view.unload().up.weight
    view.merge_adapter(["a", "b"])
    close(view.up.weight, w + delta(view, "a") + delta(view, "b"))
    view.merge_adapter(["c"])
    close(view.up.weight, w + delta(view, "a") + delta(view, "b") + delta(view, "c"))
    assert view._inlay.merged == ["a", "b", "c"]
    view.unmerge_adapter()
    assert view.up.weight is w and view._inlay.merged == []
    view.merge_adapter(["b"])
    close(view.up.weight, w + delta(view, "b"))
    close(
        view(X), view.down(torch.relu(nn.functional.linear(X, w + delta(view, "a") + delta(view, "b"), view.up.bias)))
    )


def test_only_the_active_ones_by_default() -> None:
    view = view_of(names="ab")
    view.set_adapter("b")
    view.merge_adapter()
    close(view.up.weight, view.unload().up.weight + delta(view, "b"))
    view.unmerge_adapter()
    view.set_adapter([])
    view.merge_adapter()
    assert view.up.weight is view.unload().up.weight


def test_merging_twice_is_an_error_that_changes_nothing() -> None:
    """Fault 64."""
    view = view_of(names="ab")
    view.merge_adapter(["a"])
    before = snapshot(view)
    for names in (["a"], ["b", "a"], None):
        with pytest.raises(StateError, match=r"Adapter 'a' is merged already: call unmerge_adapter\(\) first"):
            view.merge_adapter(names)
    assert same(snapshot(view), before) and view._inlay.merged == ["a"]


def test_unmerging_what_is_not_merged_is_nothing() -> None:
    view = view_of()
    before = outline(view)
    view.unmerge_adapter()
    assert outline(view) == before


def test_an_error_in_a_later_host_leaves_the_earlier_ones() -> None:
    base = mlp(dtype=torch.float64)
    view = view_of(base)
    view.down.adapters["a"].A.data[0, 0] = float("inf")
    before, below = outline(view), outline(base)
    message = r"write NaN or infinity into down.weight \(torch.float64\).*The base is unchanged.*Check the adapter"
    for call in (view.merge_adapter, view.merge_and_unload):
        with pytest.raises(NumericsError, match=message):
            call()
    now = outline(view)
    assert str(now) == str(before) and outline(base) == below


def test_a_bias_that_is_not_finite() -> None:
    view = view_of(bias="lora_only")
    view.up.adapters["a"].b.data[0] = float("nan")
    with pytest.raises(NumericsError, match=r"into up.bias"):
        view.merge_adapter()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_62_weights_quantised_in_an_unknown_way_are_refused(dtype: torch.dtype) -> None:
    view = view_of()
    view.up._parameters = {**view.up._parameters, "weight": nn.Parameter(torch.zeros(16, 8).to(dtype), False)}
    with pytest.raises(StateError, match=rf"'up' holds a {dtype} weight, quantised in a way that is not known"):
        view.merge_adapter()


def test_unloading_while_merged() -> None:
    view = view_of(names="ab")
    y = view(X)
    view.merge_adapter()
    close(view.merge_and_unload()(X), y)
    with pytest.raises(
        StateError, match=r"\['a'\] is merged into the weights: call unmerge_adapter\(\) or name it too"
    ):
        view.merge_and_unload(adapter_names=["b"])
    both = view.merge_and_unload(adapter_names=["a", "b"])
    close(both.up.weight, view.unload().up.weight + delta(view, "a") + delta(view, "b"))
    assert view._inlay.merged == ["a"]
    view.unmerge_adapter()
    assert torch.equal(view(X), y)


def test_unloading_with_no_adapter_is_the_base() -> None:
    base = mlp(dtype=torch.float64)
    view = view_of(base)
    view.set_adapter([])
    plain = view.merge_and_unload()
    assert torch.equal(plain(X), base(X)) and plain.up.weight is base.up.weight
    assert type(plain.up) is nn.Linear and not is_adapted(plain.up)


def test_the_result_outlives_view_and_base_and_keeps_neither() -> None:
    base = mlp(dtype=torch.float64)
    view = view_of(base)
    merged = view.merge_and_unload()
    y = merged(X)
    refs = [weakref.ref(view), weakref.ref(base), weakref.ref(view.up.adapters["a"]), weakref.ref(base.up.weight)]
    del view, base
    gc.collect()
    assert [r() for r in refs] == [None] * 4
    assert torch.equal(merged(X), y)


def test_it_is_frozen_plain_and_can_be_trained() -> None:
    view = view_of(target_modules=["up"])
    merged = view.merge_and_unload()
    assert not any(p.requires_grad for p in merged.parameters())
    assert "PeftModel" not in repr(merged) and "Adapted" not in repr(merged)
    for p in merged.up.parameters():
        p.requires_grad_(True)
    merged(X).sum().backward()
    assert merged.up.weight.grad is not None and view.unload().up.weight.grad is None


def test_modules_in_full_take_their_hosts_place() -> None:
    base = made(lambda: nn.Sequential(Mlp(), nn.Sequential(nn.Linear(8, 4), nn.ReLU())), dtype=torch.float64)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["0.up"], modules_to_save=["1"], r=2)))
    y = view(X)
    view.merge_adapter()
    close(view(X), y)
    merged = view.merge_and_unload()
    close(merged(X), y)
    assert type(merged[1]) is nn.Sequential and len(merged[1]) == 2
    assert merged[1][0].weight is not view[1].adapters["default"].module[0].weight
    with torch.no_grad():
        merged[1][0].weight.zero_()
    view.unmerge_adapter()
    close(view(X), y)


def test_a_layer_inside_a_module_in_full_of_another_adapter() -> None:
    base = made(lambda: nn.Sequential(Mlp(), nn.Linear(8, 4)), dtype=torch.float64)
    view = get_peft_model(base, LoraConfig(target_modules=["0.up"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["1"], modules_to_save=["0"], r=2))
    scramble(view)
    for name in "ab":
        view.set_adapter(name)
        y = view(X)
        merged = view.merge_and_unload()
        close(merged(X), y)
        assert type(merged[0]) is Mlp and type(merged[0].up) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_60_ten_times_there_and_back_is_exact(dtype: torch.dtype) -> None:
    base = llama(dtype=dtype, tie_word_embeddings=True)
    before = snapshot(base)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["q_proj", "lm_head", "embed_tokens"], r=2)))
    own, y = snapshot(view), view(ids()).logits
    for _ in range(10):
        view.merge_adapter()
        view.unmerge_adapter()
    assert same(snapshot(base), before) and same(snapshot(view), own)
    assert torch.equal(view(ids()).logits, y)


def test_61_a_tied_head_is_untied_and_a_file_says_so(tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=True)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM", r=2)))
    merged = view.merge_and_unload()
    assert merged.config is not base.config and merged.config.tie_word_embeddings is False
    assert torch.equal(merged.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert not torch.equal(merged.lm_head.weight, base.lm_head.weight)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids()).logits, merged(ids()).logits)


def test_a_head_and_an_embedding_that_merge_differently() -> None:
    base = llama(dtype=torch.float64, tie_word_embeddings=True)
    config = LoraConfig(target_modules=["lm_head", "embed_tokens"], r=2)
    view = scramble(get_peft_model(base, config))
    y = view(ids()).logits
    merged = view.merge_and_unload()
    close(merged(ids()).logits, y)
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings is False


def test_ties_that_merging_does_not_touch_stay() -> None:
    base = llama(tie_word_embeddings=True)
    merged = scramble(get_peft_model(base, LoraConfig(target_modules=["q_proj"]))).merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight is base.lm_head.weight
    assert merged.config.tie_word_embeddings is True


def test_arguments_that_are_there_for_compatibility() -> None:
    view = view_of()
    y = view(X)
    close(view.merge_and_unload(progressbar=True, safe_merge=True)(X), y)
    view.merge_adapter(safe_merge=True)
    close(view(X), y)


def test_a_merged_view_saves_loads_and_generates_as_before(tmp_path: Path) -> None:
    """Fault 57, and what RL trainers do: merge, generate, unmerge, go on training."""
    view = scramble(get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "v_proj"], r=2)))
    view.train()
    optimizer = torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.1)
    x = ids(2, 4) % 30 + 3
    options = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(x)}
    plain = view.generate(x, **options)
    view.merge_adapter()
    assert torch.equal(view.generate(x, **options), plain)
    view.save_pretrained(tmp_path)
    view.unmerge_adapter()
    view(input_ids=x, labels=x).loss.backward()
    optimizer.step()
    again = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(again.generate(x, **options), plain)


def test_a_progress_bar_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    view = view_of()
    view.merge_and_unload()
    assert capsys.readouterr().err == ""
    view.merge_and_unload(progressbar=True)
    assert "Merging" in capsys.readouterr().err


@pytest.mark.parametrize("targets", [["lm_head"], ["lm_head", "embed_tokens"], ["embed_tokens"]], ids=str)
def test_tied_weights_part_and_the_logits_stay(targets: list[str]) -> None:
    """In peft the embedding changes with the head: logits move by several units."""
    base = llama(dtype=torch.float64, tie_word_embeddings=True)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", r=2)), size=0.5)
    y, table = view(ids()).logits, base.model.embed_tokens.weight.detach().clone()
    assert (y - base(ids()).logits).abs().max() > 0.1
    for _ in range(2):
        view.merge_adapter()
        close(view(ids()).logits, y)
        assert (
            torch.equal(base.model.embed_tokens.weight, table)
            and base.lm_head.weight is base.get_input_embeddings().weight
        )
        if "embed_tokens" not in targets:
            assert torch.equal(view.get_input_embeddings().weight, table)
        if "lm_head" not in targets:
            assert torch.equal(view.get_output_embeddings().weight, table)
        view.unmerge_adapter()
    close(view.merge_and_unload()(ids()).logits, y)
    assert torch.equal(view(ids()).logits, y)


@pytest.mark.parametrize("safe", [False, True])
def test_a_merge_that_would_overflow_leaves_everything(safe: bool) -> None:
    """fp16 ends at 65504; the update fits in the float32 that it is computed in. `safe_merge` or not."""
    base = mlp(dtype=torch.float16)
    view = get_peft_model(base, LoraConfig(target_modules=["up", "down"], r=2))
    with torch.no_grad():
        view.down.adapters["default"].A.fill_(300)
        view.down.adapters["default"].B.fill_(300)
    before, below = outline(view), outline(base)
    for call in (view.merge_adapter, view.merge_and_unload):
        with pytest.raises(NumericsError, match=r"infinity into down.weight \(torch.float16\).*base of a wider dtype"):
            call(safe_merge=safe)
        assert str(outline(view)) == str(before) and outline(base) == below
    assert torch.isfinite(mlp(dtype=torch.float32)(X.float())).all() and view._inlay.merged == []


def test_what_is_refused_while_merged(tmp_path: Path) -> None:
    """Fault 64: each says what to do, and changes nothing."""
    view = view_of(names="ab")
    view.save_pretrained(str(tmp_path))
    view.merge_adapter()
    before = outline(view)

    def train() -> None:
        view.train()
        try:
            view(X)
        finally:
            view.eval()

    refused = {
        "merge": lambda: view.merge_adapter(["a"]),
        "train": train,
        "require grad": lambda: view.set_requires_grad("a"),
        "delete": lambda: view.delete_adapter("a"),
        "add": lambda: view.add_adapter("c", LoraConfig(target_modules=["up"])),
        "load": lambda: view.load_adapter(str(tmp_path / "b"), "c"),
        "sum": lambda: view.add_weighted_adapter(["a", "b"], [1, 1], "c"),
        "switch": lambda: view.set_adapter("b"),
        "switch off": lambda: view.set_adapter([]),
        "mix": lambda: view(X, adapter_names=["a", "b"]),
        "unload others": lambda: view.merge_and_unload(adapter_names=["b"]),
    }
    for what, call in refused.items():
        with pytest.raises(StateError, match=r"merged.*unmerge_adapter\(\)"):
            call()
            pytest.fail(f"{what} was allowed")
        assert str(outline(view)) == str(before), what


def test_files_of_a_merged_adapter_are_those_of_an_unmerged_one(tmp_path: Path) -> None:
    view = view_of()
    view.save_pretrained(str(tmp_path / "1"))
    view.merge_adapter()
    view.save_pretrained(str(tmp_path / "2"))
    for name in ("adapter_model.safetensors", "adapter_config.json", "inlay_manifest.json"):
        assert (tmp_path / "1" / "a" / name).read_bytes() == (tmp_path / "2" / "a" / name).read_bytes(), name


def test_through_base_model_as_in_peft() -> None:
    view = view_of(names="ab")
    y = view(X)
    view.base_model.merge_adapter(["a"])
    assert view._inlay.merged == ["a"] and torch.equal(view.up.weight, view.base_model.up.weight)
    close(view(X), y)
    view.base_model.unmerge_adapter()
    assert view._inlay.merged == [] and torch.equal(view(X), y)
