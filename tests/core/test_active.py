"""The active set: one object for all hosts, and a guard for activation checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inlay import LoraConfig, get_peft_model
from inlay.core.active import ActiveAdapters, Facts
from inlay.errors import StateError
from tests.tiny import scramble


class Checkpointed(nn.Module):
    """Two linear layers, each recomputed in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 4), False

    def forward(self, x: Tensor) -> dict[str, Any]:
        for layer in (self.up, self.down):
            x = checkpoint(lambda t, layer=layer: torch.tanh(layer(t)), x, use_reentrant=self.reentrant)
        return {"out": [x]}


@pytest.fixture(params=[False, True], ids=["", "reentrant"])
def view(request: pytest.FixtureRequest) -> Any:
    base = Checkpointed()
    base.reentrant = request.param
    view = get_peft_model(base, LoraConfig(target_modules=["up", "down"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["up"], r=2))
    return scramble(view)


def loss(view: Any) -> Tensor:
    return view(torch.ones(2, 4, requires_grad=True))["out"][0].sum()  # type: ignore[no-any-return]


def test_backward_before_switching_is_as_without_checkpoints(view: Any) -> None:
    loss(view).backward()
    view.set_adapter("b")
    loss(view).backward()
    view.set_adapter("a")
    loss(view).backward()


@pytest.mark.parametrize("names", ["b", ["a", "b"], []])
def test_switching_between_forward_and_backward_is_an_error(view: Any, names: Any) -> None:
    value = loss(view)
    view.set_adapter(names, inference_mode=True)
    with pytest.raises(StateError, match=r"changed between forward and backward.*'a'.*Call backward\(\) before"):
        value.backward()
    view.set_adapter("a")
    loss(view).backward()
    assert view.up.adapters["a"].A.grad is not None


def test_switching_there_and_back_is_none(view: Any) -> None:
    value = loss(view)
    view.set_adapter("b")
    view.set_adapter("a")
    value.backward()


def test_disabling_in_between_is_an_error(view: Any) -> None:
    value = loss(view)
    with view.disable_adapter(), pytest.raises(StateError, match="now none would be recomputed"):
        value.backward()
    with view.disable_adapter():
        value = loss(view)
    with pytest.raises(StateError, match="ran with none"):
        value.backward()


def test_two_forwards_of_different_adapters_in_flight(view: Any) -> None:
    first = loss(view)
    view.set_adapter("b")
    second = loss(view)
    second.backward()
    with pytest.raises(StateError, match="checkpointing"):
        first.backward()


def test_a_forward_in_backward_that_is_no_recomputation_is_free_to_differ(view: Any) -> None:
    """A backward hook may run parts of the model, e.g. to log what the base says."""
    out = view(torch.ones(2, 4, requires_grad=True))["out"][0]
    logged: list[Any] = []

    def look(_: Any) -> None:
        with torch.no_grad(), view.disable_adapter():
            logged.append(view.up(torch.ones(1, 4)))

    out.register_hook(look)
    out.sum().backward()
    assert len(logged) == 1


def test_without_checkpoints_switching_in_between_is_allowed() -> None:
    base = nn.Sequential(nn.Linear(4, 4))
    view = get_peft_model(base, LoraConfig(target_modules=["0"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["0"], r=2))
    scramble(view)
    expected = torch.autograd.grad(view(torch.ones(1, 4)).sum(), view[0].adapters["a"].A)
    value = view(torch.ones(1, 4)).sum()
    view.set_adapter("b")
    view.set_requires_grad("a")
    assert torch.equal(torch.autograd.grad(value, view[0].adapters["a"].A)[0], expected[0])


def test_switched_blocks_nest_and_survive_errors() -> None:
    active = ActiveAdapters()
    active.set(["a"])
    with active.switched(rows=["a", "b"]):
        assert active.state == (("a",), ("a", "b"))
        with active.switched(disabled=True):
            assert active.state == ((), ("a", "b")) and active.disabled
        assert not active.disabled
        with pytest.raises(ZeroDivisionError), active.switched(disabled=True):
            _ = 1 / 0
        assert not active.disabled
    assert active.state == (("a",), None)


def test_names_are_a_copy() -> None:
    active, names = ActiveAdapters(), ["a"]
    active.set(names)
    names.append("b")
    assert active.names == ("a",)
    twin = copy.deepcopy(active)
    twin.set([])
    assert active.names == ("a",)


def test_facts_of_some_rows() -> None:
    facts = Facts(torch.tensor([5, 6, 7]), {"a": torch.tensor([[1, 2], [3, 4], [5, 6]])})
    some = facts.of(torch.tensor([2, 0]), 3)
    assert some.task_ids is not None and some.task_ids.tolist() == [7, 5]
    assert some.told["a"].tolist() == [[5, 6], [1, 2]]
    beams = facts.of(torch.tensor([0, 1, 4, 5]), 6)
    assert beams.task_ids is not None and beams.task_ids.tolist() == [5, 5, 7, 7]
    unfit = facts.of(torch.tensor([0]), 4)
    assert unfit.task_ids is facts.task_ids, "left to the adapter, which says so"
    assert Facts().of(torch.tensor([0]), 4) == Facts()


def test_facts_of_a_call_end_with_it() -> None:
    active = ActiveAdapters()
    with active.switched(facts=Facts(torch.tensor([1]))):
        with active.switched(disabled=True):
            assert active.facts.task_ids is not None
        with pytest.raises(ZeroDivisionError), active.switched(facts=Facts()):
            _ = 1 / (0 if active.facts == Facts() else 1)
        assert active.facts.task_ids is not None
    assert active.facts == Facts()
