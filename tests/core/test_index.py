"""The index: adding, activating, training and removing adapters, and the combinations that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, get_peft_model
from inlay.core.adapted import is_adapted
from inlay.core.index import AdapterIndex, index_of
from inlay.errors import ConfigError, StateError
from tests.tiny import Mlp, llama, made, mlp, scramble

X = torch.ones(2, 8)


@pytest.fixture
def view() -> Any:
    """Adapters a (both layers), b (up only) and c (down only); a is active."""
    view = get_peft_model(mlp(), LoraConfig(target_modules=["up", "down"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["up"], r=3))
    view.add_adapter("c", LoraConfig(target_modules=["down"], r=1))
    return scramble(view)


def trained(view: Any) -> set[str]:
    return {n.split(".adapters.")[1].split(".")[0] for n, p in view.named_parameters() if p.requires_grad}


def test_what_is_where(view: Any) -> None:
    index: AdapterIndex = index_of(view)
    assert list(index.configs) == ["a", "b", "c"] and index.trainable == {"a"} and index.active.names == ("a",)
    assert {n: list(p) for n, p in index.placed.items()} == {"a": ["up", "down"], "b": ["up"], "c": ["down"]}
    assert index.hosts == {"up": view.up, "down": view.down}
    assert view.up.active is view.down.active is index.active
    assert list(view.up.adapters) == ["a", "b"] and view.up.adapters["a"] is index.placed["a"]["up"]
    assert trained(view) == {"a"}


def test_activating_and_training_are_two_things(view: Any) -> None:
    view.set_adapter(["c", "b"])
    assert view.active_adapters == ["c", "b"] and trained(view) == {"b", "c"}
    view.set_requires_grad("a")
    view.set_requires_grad(["b", "c"], False)
    assert view.active_adapters == ["c", "b"] and trained(view) == {"a"} and index_of(view).trainable == {"a"}
    view.set_adapter("b", inference_mode=True)
    assert trained(view) == set() and view.active_adapters == ["b"]


def test_a_name_given_twice_counts_once(view: Any) -> None:
    view.set_adapter("a")
    y = view(X)
    view.set_adapter(["a", "a"])
    assert torch.equal(view(X), y) and view.active_adapters == ["a"]
    view.merge_adapter(["a", "a"])
    torch.testing.assert_close(view(X), y)
    view.unmerge_adapter()
    torch.testing.assert_close(view.merge_and_unload(adapter_names=["a", "a"])(X), y)


def test_unknown_names_are_errors_that_say_which_there_are(view: Any) -> None:
    expected = r"There is no adapter 'aa'; loaded: 'a', 'b', 'c'\. Did you mean 'a'"
    for call in (view.set_adapter, view.delete_adapter, view.set_requires_grad, lambda n: view.merge_adapter([n])):
        with pytest.raises(StateError, match=expected):
            call("aa")
    with pytest.raises(StateError, match="no adapter 'x'"):
        view(X, adapter_names=["a", "x"])
    with pytest.raises(StateError, match="no adapter 'x'"):
        view.set_adapter(["b", "x"])
    assert view.active_adapters == ["a"] and trained(view) == {"a"}


def test_removing(view: Any) -> None:
    y = view(X)
    view.delete_adapter("b")
    assert torch.equal(view(X), y) and set(view.peft_config) == {"a", "c"}
    view.set_adapter(["a", "c"])
    view.delete_adapter("a")
    assert view.active_adapters == ["c"] and not is_adapted(view.up) and is_adapted(view.down)
    assert list(index_of(view).hosts) == ["down"] and index_of(view).trainable == {"c"}
    view.add_adapter("a", LoraConfig(target_modules=["up"]))
    assert is_adapted(view.up) and view.active_adapters == ["c"]
    view.set_adapter("a")
    with view.disable_adapter():
        view.delete_adapter("a")
    assert view.active_adapters == []


def test_49_deleting_the_only_adapter_leaves_a_view_that_answers_as_its_base() -> None:
    base = mlp()
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["up"])))
    view.delete_adapter("default")
    assert torch.equal(view(X), base(X))
    assert view.active_adapter == [] and view.get_nb_trainable_parameters()[0] == 0
    with pytest.raises(StateError, match="No adapter is active"):
        _ = view.active_peft_config
    view.add_adapter("default", LoraConfig(target_modules=["down"]))
    view.set_adapter("default")
    assert trained(view) == {"default"}


def test_modules_in_full_of_two_adapters_cannot_be_active_together() -> None:
    view = get_peft_model(mlp(), LoraConfig(target_modules=["up"], modules_to_save=["down"]), "a")
    view.add_adapter("b", LoraConfig(target_modules=["up"], modules_to_save=["down"]))
    for call in (view.set_adapter, view.merge_adapter, lambda n: view.merge_and_unload(adapter_names=n)):
        with pytest.raises(StateError, match=r"'a' and 'b' cannot be active together.*'down'.*one at a time"):
            call(["a", "b"])
    assert view.active_adapters == ["a"]
    view.set_adapter("b")


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
def test_an_adapter_inside_a_module_that_another_replaces_would_be_void(order: list[str]) -> None:
    base = made(lambda: nn.Sequential(Mlp(), nn.Linear(8, 2)))
    view = get_peft_model(base, LoraConfig(target_modules=["0.up"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["1"], modules_to_save=["0"], r=2))
    with pytest.raises(StateError, match="cannot be active together"):
        view.set_adapter(order)
    view.set_adapter("b")
    view.set_adapter("a")


def test_biases_of_two_adapters_cannot_be_active_together() -> None:
    view = get_peft_model(mlp(), LoraConfig(target_modules=["up"], bias="lora_only"), "a")
    view.add_adapter("b", LoraConfig(target_modules=["down"], bias="all"))
    with pytest.raises(StateError, match=r"cannot be active together.*'up'"):
        view.set_adapter(["a", "b"])
    view.add_adapter("c", LoraConfig(target_modules=["up"]))
    view.set_adapter(["a", "c"])


def test_one_adapter_that_trains_tied_things_is_no_conflict_with_itself() -> None:
    view = get_peft_model(
        llama(tie_word_embeddings=True), LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2])
    )
    view.set_adapter("default")
    view.set_adapter(["default"])


def test_64_while_merged_what_would_go_wrong_is_an_error(view: Any) -> None:
    view.merge_adapter()
    hint = r"'a'.* is merged.*unmerge_adapter\(\)"
    with pytest.raises(StateError, match=hint):
        view.merge_adapter()
    with pytest.raises(StateError, match=hint):
        view.delete_adapter("a")
    with pytest.raises(StateError, match=hint):
        view.set_adapter("b")
    with pytest.raises(StateError, match=hint):
        view.add_adapter("d", LoraConfig(target_modules=["up"]))
    with pytest.raises(StateError, match="cannot mix adapters while one is merged"):
        view(X, adapter_names=["a", "b"])
    with pytest.raises(StateError, match=hint):
        view.merge_and_unload(adapter_names=["b"])
    view.set_requires_grad("a", False)
    with pytest.raises(StateError, match=hint):
        view.set_requires_grad("a")
    view.set_adapter("a", inference_mode=True)
    view.delete_adapter("b")
    view.unmerge_adapter()
    view.unmerge_adapter()
    view.set_adapter("c")


def test_64_training_while_merged_is_an_error(view: Any) -> None:
    view.merge_adapter()
    view(X)
    view.train()
    with pytest.raises(StateError, match=r"'a' is merged.*unmerge_adapter\(\) to train"):
        view(X)
    view.set_requires_grad("a", False)
    view(X)
    view.unmerge_adapter()
    view.set_requires_grad("a")
    view.merge_adapter()
    with torch.no_grad():
        view(X)
    with torch.inference_mode():
        view(X)
    with view.disable_adapter():
        view(X)
    view.unmerge_adapter()
    view(X).sum().backward()


def test_rows_need_names(view: Any) -> None:
    with pytest.raises(ConfigError, match=r"adapter_names=.* is not allowed: expected one adapter name per row"):
        view(X, adapter_names=[])


def test_a_model_without_adapters_has_no_index() -> None:
    with pytest.raises(StateError, match=r"This Mlp has no adapters: get a view of it with get_peft_model"):
        index_of(mlp())
    model = mlp()
    model._inlay = "mine"
    with pytest.raises(StateError, match="has no adapters"):
        index_of(model)


def test_switching_touches_no_host(view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """O(1): only the shared object is written when the trainable set stays."""
    view.set_adapter([])
    writes: list[str] = []
    real = nn.Module.__setattr__
    monkeypatch.setattr(nn.Module, "__setattr__", lambda s, k, v: (writes.append(k), real(s, k, v)))
    view._inlay.activate(["b"])
    view._inlay.activate(["a", "c"])
    assert writes == [] and view.active_adapters == ["a", "c"]
