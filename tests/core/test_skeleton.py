"""The skeleton: same weights, new modules, and nothing in the clone that still leads to the original."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from inlay.core.skeleton import clone_skeleton, plain_view
from tests.tiny import Mlp, ids, llama, mlp, net, same, snapshot


def pointers(model: nn.Module) -> set[int]:
    """Addresses of a model's parameters and buffers."""
    return {t.data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}


@pytest.mark.parametrize("build", [net, mlp, llama, lambda: llama(tie_word_embeddings=True)])
def test_new_modules_over_the_same_dicts(build: Any) -> None:
    model = build()
    clone = clone_skeleton(model)
    assert type(clone) is type(model) and clone is not model
    for (path, a), (other, b) in zip(model.named_modules(), clone.named_modules(), strict=True):
        assert path == other and type(a) is type(b) and a is not b
        assert a._parameters is b._parameters and a._buffers is b._buffers
        assert a._modules is not b._modules or not a._modules
        assert list(vars(a)) == list(vars(b)), "the order of attributes is kept"
    assert pointers(model) == pointers(clone)
    y, again = model(torch.ones(2, 8) if build is mlp else ids()), clone(torch.ones(2, 8) if build is mlp else ids())
    assert torch.equal(getattr(y, "logits", y), getattr(again, "logits", again))


def _half(model: nn.Module) -> None:
    model.half()


def _assign(model: nn.Module) -> None:
    state = {k: torch.full_like(v, 0.25) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _swap(model: nn.Module) -> None:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _meta(model: nn.Module) -> None:
    model.to_empty(device="meta")


@pytest.mark.parametrize("change", [_half, _assign, _swap, _meta])
@pytest.mark.parametrize("through", ["base", "clone"])
def test_what_changes_the_weights_of_one_changes_both(change: Any, through: str) -> None:
    model = net()
    clone = clone_skeleton(model)
    before = {k: (v.dtype, v.device) for k, v in model.state_dict().items()}
    start = snapshot(model)
    change(model if through == "base" else clone)
    for (k, a), (_, b) in zip(model.named_parameters(), clone.named_parameters(), strict=True):
        assert a is b, k
    state = model.state_dict()
    assert any((v.dtype, v.device) != before[k] or not torch.equal(v, start[k]) for k, v in state.items())


def test_tied_weights_and_shared_modules_stay_so() -> None:
    model = llama(tie_word_embeddings=True)
    clone = clone_skeleton(model)
    assert clone.lm_head.weight is clone.model.embed_tokens.weight is model.lm_head.weight
    shared = nn.Linear(3, 3)
    stack = nn.Sequential(shared, nn.ReLU(), shared)
    twin = clone_skeleton(stack)
    assert twin[0] is twin[2] and twin[0] is not shared


def test_a_model_that_refers_back_to_itself() -> None:
    model = mlp()
    object.__setattr__(model.up, "owner", model)
    model.__dict__["names"] = {"up": model.up}
    model.__dict__["loop"] = [model.names]
    model.names["loop"] = model.names
    clone = clone_skeleton(model)
    assert clone.up.owner is clone
    assert clone.names["up"] is clone.up and clone.names["loop"] is clone.names
    assert clone.loop[0] is clone.names


def test_bound_methods_partials_and_containers_lead_to_the_clone() -> None:
    model = mlp()
    model.__dict__.update(
        method=model.up.forward,
        partial=functools.partial(model.up.forward, torch.ones(8)),
        nested=functools.partial(functools.partial(isinstance, model.up), nn.Linear),
        listed=[model.up, (model.down,), {model.up}],
        ordered=OrderedDict(a=model.down),
        reference=weakref.ref(model.up),
        other=weakref.ref(nn.ReLU),
        size=torch.Size([1, 2]),
    )
    model.partial.mark = model.down
    clone = clone_skeleton(model)
    assert clone.method.__self__ is clone.up and clone.method.__func__ is nn.Linear.forward
    assert clone.partial.func.__self__ is clone.up and clone.partial.mark is clone.down
    assert clone.partial.args[0] is model.partial.args[0]
    assert clone.nested.args[0] is clone.up
    assert clone.listed[0] is clone.up and clone.listed[1][0] is clone.down and clone.listed[2] == {clone.up}
    assert isinstance(clone.ordered, OrderedDict) and clone.ordered["a"] is clone.down
    assert clone.reference() is clone.up and clone.other is model.other and clone.size == (1, 2)
    assert model.method.__self__ is model.up and model.listed[0] is model.up, "the original is as it was"


def _calls_up(model: Any) -> Any:
    up = model.up

    def forward(x: Any) -> Any:
        return up(x)

    return forward


def _wrapped(model: Any) -> Any:
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    return forward


def _by_default(model: Any) -> Any:
    def forward(x: Any, up: Any = model.up, *, down: Any = model.down) -> Any:
        return down(up(x))

    return forward


def _through_a_dict(model: Any) -> Any:
    parts = {"up": model.up}
    return lambda x: parts["up"](x)


@pytest.mark.parametrize("make", [_calls_up, _wrapped, _by_default, _through_a_dict])
def test_closures_over_modules_are_made_anew(make: Any) -> None:
    model = mlp()
    model.forward = make(model)
    clone = clone_skeleton(model)
    x = torch.ones(2, 8)
    y = model(x)
    assert torch.equal(clone(x), y)
    clone.up._parameters = {k: nn.Parameter(p + 1) for k, p in clone.up._parameters.items()}
    assert not torch.equal(clone(x), y), "the clone's forward goes through the clone's modules"
    assert torch.equal(model(x), y)
    assert clone.forward.__name__ == model.forward.__name__


def test_functions_without_a_module_in_them_are_kept() -> None:
    model = mlp()
    number, log = 3, [1]
    part = functools.partial(log.append, log)
    model.__dict__.update(plain=_calls_up, counts=lambda x: (x + number, log), module=torch.relu, part=part)
    clone = clone_skeleton(model)
    assert clone.plain is model.plain and clone.counts is model.counts and clone.module is torch.relu
    assert clone.part is part


def test_what_else_a_closure_holds_stays_shared() -> None:
    model = mlp()
    log: list[Any] = []
    count, up = 0, model.up

    def note(module: Any, *_: Any) -> None:
        nonlocal count
        count += 1
        log.append(module is up)

    up.register_forward_hook(note)
    clone = clone_skeleton(model)
    model(torch.ones(1, 8))
    clone(torch.ones(1, 8))
    assert count == 2 and log == [True, True]


def test_closures_that_hold_each_other_or_an_empty_cell() -> None:
    model = mlp()
    up = model.up

    def pair() -> tuple[Any, Any]:
        def first(x: Any) -> Any:
            return second(x) if x is None else up(x)

        def second(x: Any) -> Any:
            return first(x)

        return first, second

    def waiting() -> Any:
        def unset() -> Any:
            return late

        model.__dict__["unset"] = unset
        clone = clone_skeleton(model)
        late = 1
        return clone, unset, late

    model.__dict__["first"] = pair()[0]
    clone, unset, _ = waiting()
    x = torch.ones(2, 8)
    assert torch.equal(clone.first(x), up(x))
    clone.up._parameters = {k: nn.Parameter(p + 1) for k, p in clone.up._parameters.items()}
    assert not torch.equal(clone.first(x), up(x))
    assert clone.unset is unset and clone.unset() == 1


def test_hooks_are_the_clones_own_and_their_handles_remove_them() -> None:
    model = mlp()
    seen: list[Any] = []
    model.__dict__["handle"] = model.up.register_forward_hook(lambda m, *_: seen.append(m), with_kwargs=False)
    model.__dict__["pre"] = model.up.register_forward_pre_hook(lambda m, *_: seen.append(m))
    clone = clone_skeleton(model)
    clone(torch.ones(1, 8))
    assert seen == [clone.up, clone.up]
    seen.clear()
    clone.handle.remove()
    clone(torch.ones(1, 8))
    assert seen == [clone.up]
    seen.clear()
    model(torch.ones(1, 8))
    assert seen == [model.up, model.up], "the original's hooks are still there"
    model.handle.remove()
    model.pre.remove()
    assert not model.up._forward_hooks and not model.up._forward_pre_hooks
    clone.up.register_forward_hook(lambda *_: None)
    assert not model.up._forward_hooks


def test_hooks_bound_to_a_module_call_the_clones() -> None:
    model = mlp()
    model.__dict__["calls"] = 0

    def note(self: Any, *_: Any) -> None:
        self.calls += 1

    model.up.register_forward_hook(types.MethodType(note, model))
    clone = clone_skeleton(model)
    clone(torch.ones(1, 8))
    assert (clone.calls, model.calls) == (1, 0)


def test_instance_forwards_of_the_kind_accelerate_installs() -> None:
    """`forward` = a partial over the module that runs a hook around `_old_forward`, the original bound method."""
    model = mlp()

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module._old_forward(*args, **kwargs) + 1

    for module in (model.up, model):
        module._old_forward = module.forward
        module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)
    clone = clone_skeleton(model)
    x = torch.ones(2, 8)
    y = model(x)
    assert torch.equal(clone(x), y)
    clone.down._parameters = {k: nn.Parameter(torch.zeros_like(p)) for k, p in clone.down._parameters.items()}
    assert torch.equal(clone(x), torch.ones_like(y))
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)])
def test_running_statistics_are_private(norm: nn.Module) -> None:
    model = nn.Sequential(norm).train()
    clone = clone_skeleton(model)
    before = snapshot(model)
    clone(torch.randn(8, 4, 3) + 5)
    assert same(snapshot(model), before)
    assert not torch.equal(clone[0].running_mean, model[0].running_mean)
    assert clone[0]._parameters is model[0]._parameters


def test_configs_are_private_and_shared_among_the_submodules_that_share_them() -> None:
    model = llama()
    assert model.config is model.model.config
    clone = clone_skeleton(model)
    assert clone.config is not model.config and clone.config is clone.model.config
    assert clone.config is clone.model.layers[0].self_attn.config
    assert clone.config.to_dict() == model.config.to_dict()
    clone.config.use_cache = not model.config.use_cache
    clone.generation_config.max_length = 7
    assert model.config.use_cache != clone.config.use_cache and model.generation_config.max_length != 7


def test_flags_are_private() -> None:
    model = llama()
    clone = clone_skeleton(model)
    clone.train()
    assert not model.training and not model.model.layers[0].self_attn.training
    clone.model.gradient_checkpointing = True
    assert model.model.gradient_checkpointing is False
    clone.extra = nn.Linear(2, 2)
    assert "extra" not in model._modules


def test_a_compiled_model_is_unwrapped() -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    clone = clone_skeleton(compiled)
    assert type(clone) is Mlp and clone.up._parameters is model.up._parameters
    model.compile(backend="eager")
    assert clone_skeleton(model)._compiled_call_impl is None
    assert "_compiled_call_impl" in vars(model)


class _Doubled(nn.Module):
    def forward(self, x: Any) -> Any:
        return 2 * x


def test_parametrized_modules_keep_their_parametrization() -> None:
    model = mlp()
    parametrize.register_parametrization(model.up, "weight", _Doubled())
    clone = clone_skeleton(model)
    x = torch.ones(1, 8)
    assert torch.equal(clone(x), model(x))
    assert clone.up.parametrizations.weight is not model.up.parametrizations.weight
    assert clone.up.parametrizations.weight.original is model.up.parametrizations.weight.original
    with torch.no_grad():
        model.up.parametrizations.weight.original.mul_(3)
    assert torch.equal(clone(x), model(x))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_recurrent_layers_follow_their_parameters(cls: Any) -> None:
    """They keep a second list of their weights, which must not go stale."""
    model = nn.ModuleDict({"rnn": cls(3, 4)})
    clone = clone_skeleton(model)
    x = torch.ones(2, 1, 3)
    _assign(model)
    assert torch.equal(clone["rnn"](x)[0], model["rnn"](x)[0])
    _swap(model)
    assert torch.equal(clone["rnn"](x.double())[0], model["rnn"](x.double())[0])


def test_subclasses_can_be_chosen() -> None:
    class Named(Mlp):
        pass

    clone = clone_skeleton(mlp(), class_of=lambda m: Named if type(m) is Mlp else type(m))
    assert type(clone) is Named and type(clone.up) is nn.Linear


def test_attributes_that_are_no_modules_are_shared_objects() -> None:
    class Cache:
        pass

    model = mlp()
    model.__dict__["cache"] = Cache()
    model.__dict__["tensor"] = torch.ones(3)
    clone = clone_skeleton(model)
    assert clone.cache is model.cache and clone.tensor is model.tensor


def test_a_clone_of_a_clone_and_a_copy_of_one() -> None:
    model = net()
    twice = clone_skeleton(clone_skeleton(model))
    assert twice.fc._parameters is model.fc._parameters
    twin = copy.deepcopy(twice)
    assert not pointers(twin) & pointers(model)
    assert torch.equal(twin(ids()), model(ids()))


def test_plain_view_is_the_same_module_in_two_objects() -> None:
    model = mlp()
    view = plain_view(model)
    assert type(view) is Mlp and view is not model and vars(view) is vars(model)
    view.train()
    assert model.training
    model.extra = nn.Linear(1, 1)
    assert view.extra is model.extra


def test_what_leads_to_a_plain_view_leads_to_the_clone() -> None:
    # TRL sets a `forward` on `get_base_model()` which calls the one before: in a clone it must not call the original
    model = mlp()
    plain = plain_view(model)
    before = plain.forward

    def patched(self: Any, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        return self, before(x) + 1

    plain.forward = types.MethodType(patched, plain)
    clone = clone_skeleton(model)
    for p in clone.modules():
        p._parameters = {k: v if v is None else nn.Parameter(v * 0) for k, v in p._parameters.items()}
    whom, y = clone(torch.ones(2, 8))
    assert whom is clone and torch.equal(y, torch.ones_like(y))
    assert model(torch.ones(2, 8))[0] is plain
