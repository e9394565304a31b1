"""Adapted hosts: how active adapters are composed, one name per row, and what hides a host's forward."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import LoraConfig, get_peft_model
from inlay.config import AdapterConfig
from inlay.core.active import ActiveAdapters
from inlay.core.adapted import adapt, check_reachable, clone_unadapted, is_adapted, place, restore
from inlay.core.adapter import Adapter
from inlay.core.host import site
from inlay.errors import StateError, TargetError
from tests.tiny import close, mlp, same, scramble, snapshot


class Plus(Adapter):
    """y = f(x) + n, and a record of the order of calls."""

    calls: list[float] = []

    def __init__(self, n: float, factor: float = 1.0, reads: bool = False) -> None:
        nn.Module.__init__(self)
        self.n, self.factor = n, factor
        self.reads_weight = reads  # type: ignore[misc]

    def forward(self, base: Any, x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        self.calls.append(self.n)
        return self.factor * base(x, *args, **kwargs) + self.n


@pytest.fixture
def host() -> Any:
    Plus.calls.clear()
    linear: Any = nn.Linear(2, 2)
    adapt(linear, ActiveAdapters())
    return linear


def plain(host: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(x, host.weight, host.bias)


def test_no_active_adapter_is_the_hosts_own_forward(host: Any) -> None:
    x = torch.ones(1, 2)
    place(host, "a", Plus(1))
    assert torch.equal(host(x), plain(host, x)) and Plus.calls == []
    host.active.set(["other"])
    assert torch.equal(host(x), plain(host, x)), "an adapter that is not in this host"


def test_active_adapters_wrap_each_other_in_order(host: Any) -> None:
    x = torch.ones(1, 2)
    for name, adapter in {"a": Plus(1, 2), "b": Plus(3, 5)}.items():
        place(host, name, adapter)
    host.active.set(["a", "b"])
    close(host(x), 5 * (2 * plain(host, x) + 1) + 3)
    host.active.set(["b", "a"])
    close(host(x), 2 * (5 * plain(host, x) + 3) + 1)


def test_an_adapter_that_reads_the_weight_is_innermost(host: Any) -> None:
    x = torch.ones(1, 2)
    place(host, "a", Plus(1, 2))
    place(host, "b", Plus(3, 5, reads=True))
    for names in (["a", "b"], ["b", "a"]):
        host.active.set(names)
        close(host(x), 2 * (5 * plain(host, x) + 3) + 1)


def test_merged_and_disabled_adapters_take_no_part(host: Any) -> None:
    x = torch.ones(1, 2)
    place(host, "a", Plus(1))
    host.active.set(["a"])
    host.adapters["a"].merged = True
    assert torch.equal(host(x), plain(host, x))
    host.adapters["a"].merged = False
    assert torch.equal(host(x), plain(host, x) + 1)
    host.active.disabled = True
    assert torch.equal(host(x), plain(host, x))


def test_arguments_are_passed_through() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
            return super().forward(x) * scale + shift

    linear: Any = Scaled(2, 2)
    adapt(linear, ActiveAdapters())
    place(linear, "a", Plus(1))
    linear.active.set(["a"])
    x = torch.ones(1, 2)
    close(linear(x, 2.0, shift=3.0), 2 * plain(linear, x) + 3 + 1)


def test_hooks_of_a_target_see_the_adapted_output(host: Any) -> None:
    place(host, "a", Plus(1))
    host.active.set(["a"])
    seen: list[Any] = []
    host.register_forward_hook(lambda m, args, out: seen.append(out))
    y = host(torch.ones(1, 2))
    assert seen == [y] and seen[0] is y


def test_each_row_has_its_adapter(host: Any) -> None:
    for name, n in {"a": 1.0, "b": 2.0}.items():
        place(host, name, Plus(n))
    x = torch.randn(4, 3, 2)
    with host.active.switched(rows=["b", "__base__", "a", "b"]):
        y = host(x)
    close(y, plain(host, x) + torch.tensor([2.0, 0, 1, 2]).view(4, 1, 1))
    Plus.calls.clear()
    with host.active.switched(rows=["b", "b", "b", "b"]):
        close(host(x), plain(host, x) + 2)
    assert Plus.calls == [2.0], "rows of one adapter are computed together"
    with host.active.switched(rows=["__base__"] * 4):
        close(host(x), plain(host, x))


def test_a_host_that_none_of_the_rows_names_is_in_is_not_split(host: Any) -> None:
    """It may take more than x by row: an attention its mask, and its cache by reference."""
    place(host, "a", Plus(1.0))
    x = torch.randn(3, 2)
    with host.active.switched(rows=["b", "__base__", "c"]):
        assert torch.equal(host(x), plain(host, x)) and torch.equal(host(input=x), plain(host, x))
    assert Plus.calls == []


def test_a_host_called_by_keyword_has_one_adapter(host: Any) -> None:
    for name, n in {"a": 1.0, "b": 2.0}.items():
        place(host, name, Plus(n))
    x = torch.randn(2, 2)
    with host.active.switched(rows=["b", "b"]):
        close(host(x=x), plain(host, x) + 2)
    with host.active.switched(rows=["b", "a"]), pytest.raises(StateError, match="called by keywords only cannot mix"):
        host(x=x)


def test_a_row_may_stand_for_several(host: Any) -> None:
    """Beam search and flattened tokens: each row of the input becomes several consecutive ones."""
    for name, n in {"a": 1.0, "b": 2.0}.items():
        place(host, name, Plus(n))
    x = torch.randn(6, 2)
    with host.active.switched(rows=["b", "a"]):
        close(host(x), plain(host, x) + torch.tensor([2.0, 2, 2, 1, 1, 1]).view(6, 1))


@pytest.mark.parametrize("rows", [3, 1])
def test_a_batch_that_does_not_fit_the_names_is_an_error(host: Any, rows: int) -> None:
    with host.active.switched(rows=["a", "b"]), pytest.raises(StateError, match=f"2 names.*batch of {rows} rows"):
        host(torch.ones(rows, 2))


def test_gradients_of_mixed_rows_are_those_of_the_rows_alone() -> None:
    base = mlp(dtype=torch.float64)
    view = get_peft_model(base, LoraConfig(target_modules=["up", "down"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["up"], r=3))
    scramble(view)
    x = torch.randn(4, 8, dtype=torch.float64)
    names = ["a", "b", "__base__", "a"]
    trained = [p for n in "ab" for adapter in view._inlay.placed[n].values() for p in adapter.parameters()]
    view.set_requires_grad(["a", "b"])
    mixed = torch.autograd.grad(view(x, adapter_names=names).square().sum(), trained)
    alone = [torch.zeros_like(p) for p in trained]
    for i, name in enumerate(names):
        if name != "__base__":
            view.set_adapter(name)
            view.set_requires_grad(["a", "b"])
            got = torch.autograd.grad(view(x[i : i + 1]).square().sum(), trained, allow_unused=True)
            alone = [s if g is None else s + g for s, g in zip(alone, got, strict=True)]
    for m, a in zip(mixed, alone, strict=True):
        close(m, a)


def test_adapt_and_restore_leave_the_host_as_it_was() -> None:
    linear: Any = nn.Linear(2, 2)
    linear._old = linear.forward
    before, attributes = snapshot(linear), list(vars(linear))
    adapt(linear, ActiveAdapters())
    place(linear, "a", Plus(1))
    assert is_adapted(linear) and isinstance(linear, nn.Linear)
    assert linear._old.__func__ is type(linear).forward
    assert set(snapshot(linear)) == set(before)
    restore(linear)
    assert type(linear) is nn.Linear and list(vars(linear)) == attributes and not linear._modules
    assert linear._old == linear.forward and linear._old.__func__ is nn.Linear.forward
    assert same(snapshot(linear), before)


def test_a_placed_adapter_takes_the_hosts_mode() -> None:
    for training in (True, False):
        linear: Any = nn.Linear(2, 2).train(training)
        adapt(linear, ActiveAdapters())
        place(linear, "a", Plus(1).train(not training))
        assert linear.adapters["a"].training is training


def _hooked(module: Any) -> None:
    """As accelerate does: the inner method in an attribute, the outer one around it."""

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module._old_forward(*args, **kwargs) * 2

    module._old_forward = module.forward
    module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)


def test_a_hooked_forward_is_adapted_and_still_so_without_the_hook() -> None:
    base = mlp(dtype=torch.float64)
    _hooked(base.up)
    _hooked(base)
    x = torch.ones(1, 8, dtype=torch.float64)
    y = base(x)
    view = get_peft_model(base, LoraConfig(target_modules=["up"], r=2))
    close(view(x), y)
    scramble(view)
    merged = 2 * view.down(torch.relu(2 * view.up._old_forward(x)))
    close(view(x), merged)
    assert not torch.equal(view(x), y) and torch.equal(base(x), y)
    with view.disable_adapter():
        assert torch.equal(view(x), y)
    view.up.forward = view.up._old_forward
    del view.up._old_forward
    close(view(x), 2 * view.down(torch.relu(type(view.up).forward(view.up, x))))


def test_a_hooked_model_can_be_merged_and_unloaded() -> None:
    base = mlp(dtype=torch.float64)
    _hooked(base.up)
    _hooked(base)
    x = torch.ones(1, 8, dtype=torch.float64)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["up"], r=2)))
    y = view(x)
    merged = view.merge_and_unload()
    del view
    close(merged(x), y)
    assert merged.up._old_forward.__func__ is nn.Linear.forward
    assert merged._old_forward.__func__ is type(base).forward
    assert merged._old_forward.__self__ is merged


def test_a_hooked_host_is_plain_again_after_deletion() -> None:
    base = mlp()
    _hooked(base.up)
    x = torch.ones(1, 8)
    y = base(x)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["up"], r=2)))
    view.delete_adapter("default")
    assert torch.equal(view(x), y) and type(view.up) is nn.Linear


@pytest.mark.parametrize(
    "forward",
    [lambda x: x, functools.partial(torch.mul, 2), types.MethodType(lambda self, x: x, nn.Linear(1, 1)), torch.relu],
)
def test_a_forward_that_hides_the_class_is_an_error_and_nothing_changes(forward: Any) -> None:
    base = mlp()
    base.up.forward = forward
    with pytest.raises(TargetError, match=r"`forward` set on the instance.*del module.forward"):
        check_reachable(base.up)
    with pytest.raises(TargetError, match="no effect"):
        get_peft_model(base, LoraConfig(target_modules=["up"]))
    assert all(p.requires_grad for p in base.parameters())
    hidden = mlp()
    hidden.forward = lambda x: x
    with pytest.raises(TargetError, match="This Mlp has a `forward` set on the instance"):
        get_peft_model(hidden, LoraConfig(target_modules=["up"]))


def test_a_clone_without_adapters() -> None:
    view = scramble(get_peft_model(mlp(), LoraConfig(target_modules=["up"], modules_to_save=["down"])))
    clone = clone_unadapted(view.up)
    assert type(clone) is nn.Linear and vars(clone).keys() == vars(mlp().up).keys() and not clone._modules
    assert clone._parameters is view.up._parameters


def test_a_site_of_an_adapted_host_is_that_of_the_host() -> None:
    view = get_peft_model(mlp(dtype=torch.bfloat16), LoraConfig(target_modules=["up"]))
    at = site("up", view.up, "linear")
    assert (at.in_features, at.out_features, at.dtype) == (8, 16, torch.float32)
    assert isinstance(view.peft_config["default"], AdapterConfig)
