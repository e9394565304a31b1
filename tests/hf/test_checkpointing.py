"""Activation checkpointing: the gradients are those without it, whichever kind and whenever it is turned on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay.errors import StateError

from . import tiny
from .tiny import fill, gradients, lora, view_of

KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])


# torch's, of a checkpointed forward pass without gradients
NO_GRAD = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")


def checkpoint(model: Any, reentrant: bool) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def backward(view: Any, family: str) -> dict[str, torch.Tensor]:
    view.train()
    torch.manual_seed(0)
    view(**tiny.batch(family)).loss.backward()
    return gradients(view)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=1e-6), key


@pytest.mark.parametrize("when", ["before", "after"])
@KINDS
@pytest.mark.parametrize("family", ["llama", "bloom", "t5", "vit"])
def test_gradients_are_those_without(family: str, reentrant: bool, when: str) -> None:
    expected = backward(view_of(tiny.base(family), family), family)
    assert set(expected) == set(tiny.adapter_parameters(view_of(tiny.base(family), family)))
    assert all(bool(g.any()) for g in expected.values())
    base = tiny.base(family)
    if when == "before":
        checkpoint(base, reentrant)
    view = view_of(base, family)
    if when == "after":
        checkpoint(view, reentrant)
    assert view.is_gradient_checkpointing
    assert base.is_gradient_checkpointing == (when == "before")
    assert_close(backward(view, family), expected)


@KINDS
def test_turned_on_and_off(reentrant: bool) -> None:
    base = tiny.base("llama")
    view = view_of(base)
    expected = backward(view, "llama")
    view.zero_grad()
    checkpoint(view, reentrant)
    assert_close(backward(view, "llama"), expected)
    view.zero_grad()
    view.gradient_checkpointing_disable()
    assert not view.is_gradient_checkpointing
    assert_close(backward(view, "llama"), expected)


@KINDS
def test_turned_on_in_the_base_afterwards_is_the_bases_own(reentrant: bool) -> None:
    base = tiny.base("llama")
    view = view_of(base)
    checkpoint(base, reentrant)
    assert not view.is_gradient_checkpointing


@KINDS
def test_dropout_is_recomputed_alike(reentrant: bool) -> None:
    views = [view_of(tiny.base("llama", attention_dropout=0.2), lora_dropout=0.4) for _ in range(2)]
    checkpoint(views[1], reentrant)
    assert_close(backward(views[1], "llama"), backward(views[0], "llama"))


# ---------------------------------------------------------------- the active set between forward and backward


def two(reentrant: bool | None) -> Any:
    view = view_of(tiny.base("llama"))
    view.add_adapter("other", lora(r=4))
    fill(view, 9, "other")
    if reentrant is not None:
        checkpoint(view, reentrant)
    return view.train()


def switch(view: Any) -> None:
    view.set_adapter("other")


def both(view: Any) -> None:
    view.set_adapter(["default", "other"])


def disable(view: Any) -> None:
    view.disable_adapters()


def delete(view: Any) -> None:
    view.delete_adapter("default")


@pytest.mark.parametrize("change", [switch, both, disable, delete])
@KINDS
def test_another_active_set_in_the_backward_raises(reentrant: bool, change: Any) -> None:
    view = two(reentrant)
    loss = view(**tiny.batch()).loss
    change(view)
    with pytest.raises(StateError, match="between forward and backward"):
        loss.backward()


@KINDS
def test_so_does_a_loss_computed_outside(reentrant: bool) -> None:
    view = two(reentrant)
    loss = view(input_ids=tiny.batch()["input_ids"]).logits.float().logsumexp(-1).mean()
    switch(view)
    with pytest.raises(StateError, match="between forward and backward"):
        loss.backward()


@KINDS
def test_rows_of_a_mixed_batch_are_part_of_the_state(reentrant: bool) -> None:
    view = two(reentrant)
    loss = view(**tiny.batch(), adapter_names=["other", "default"]).loss
    with pytest.raises(StateError, match="between forward and backward"):
        loss.backward()


@NO_GRAD
@KINDS
def test_back_in_the_same_state_is_right(reentrant: bool) -> None:
    expected = backward(two(None), "llama")
    view = two(reentrant)
    loss = view(**tiny.batch()).loss
    switch(view)
    with torch.no_grad():
        view(**tiny.batch(seed=1))
    view.set_adapter("default")
    loss.backward()
    assert_close(gradients(view), expected)


def preference_loss(view: Any, reference_grad: bool = False) -> torch.Tensor:
    """As DPO has it: the policy's loss, and the reference's, which is the same view with its adapter off."""
    policy = view(**tiny.batch()).loss
    with torch.set_grad_enabled(reference_grad), view.disable_adapter():
        reference = view(**tiny.batch()).loss
    return torch.sigmoid(policy - reference.detach())


@NO_GRAD
@pytest.mark.parametrize("reference_grad", [False, True])
@KINDS
def test_a_reference_pass_in_between_is_right(reentrant: bool, reference_grad: bool) -> None:
    plain, view = two(None), two(reentrant)
    for v in (plain, view):
        preference_loss(v, reference_grad).backward()
    assert_close(gradients(view), gradients(plain))


@NO_GRAD
@KINDS
def test_a_reference_adapter_in_between_is_right(reentrant: bool) -> None:
    """As DPO has it with `ref_adapter_name`: switch, forward without gradients, switch back."""
    plain, view = two(None), two(reentrant)
    for v in (plain, view):
        policy = v(**tiny.batch()).loss
        v.set_adapter("other")
        with torch.no_grad():
            reference = v(**tiny.batch()).loss
        v.set_adapter("default")
        torch.sigmoid(policy - reference).backward()
    assert_close(gradients(view), gradients(plain))


@KINDS
def test_accumulated_batches_are_right(reentrant: bool) -> None:
    plain, view = two(None), two(reentrant)
    for v in (plain, view):
        (v(**tiny.batch()).loss + v(**tiny.batch(seed=1)).loss).backward()
        v.set_adapter("other")
        v(**tiny.batch(seed=2)).loss.backward()
    assert_close(gradients(view), gradients(plain))


@KINDS
def test_two_adapters_in_one_backward_raise_or_are_right(reentrant: bool) -> None:
    view = two(reentrant)
    first = view(**tiny.batch()).loss
    view.set_adapter("other")
    second = view(**tiny.batch()).loss
    with pytest.raises(StateError, match="between forward and backward"):
        (first + second).backward()


@KINDS
def test_after_the_error_the_view_works(reentrant: bool) -> None:
    expected = backward(two(None), "llama")
    view = two(reentrant)
    loss = view(**tiny.batch()).loss
    switch(view)
    with pytest.raises(StateError):
        loss.backward()
    view.set_adapter("default")
    view.zero_grad()
    assert_close(backward(view, "llama"), expected)


def test_without_checkpointing_switching_is_allowed() -> None:
    expected = backward(two(None), "llama")
    view = two(None)
    loss = view(**tiny.batch()).loss
    switch(view)
    view.set_requires_grad("default")  # `set_adapter` froze it
    loss.backward()
    assert_close(gradients(view), expected)
