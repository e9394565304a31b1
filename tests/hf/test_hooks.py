"""Views of models whose modules were given another `forward` before: by accelerate, by hand, by the compiler."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState
from torch import nn

from inlay import PeftModel, get_peft_model
from inlay.errors import StateError, TargetError

from . import tiny
from .tiny import fill, gradients, lora, view_of

Prepare = Callable[[Any, Path], Any]
LAYERS = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.compiler.reset()


def dispatched_to_disk(base: Any, folder: Path) -> Any:
    places = {**LAYERS, "model.layers.0": "cpu", "model.layers.1": "disk"}
    return dispatch_model(base, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def dispatched_to_cpu(base: Any, folder: Path) -> Any:
    return dispatch_model(base, {"": "cpu"}, main_device="cpu", force_hooks=True)


def offloaded_to_cpu(base: Any, folder: Path) -> Any:
    return cpu_offload(base, execution_device=torch.device("cpu"))


def loaded_with_a_device_map(base: Any, folder: Path) -> Any:
    base.save_pretrained(folder / "base")
    places = {**LAYERS, "model.layers.0": "disk", "model.layers.1": "cpu"}
    return type(base).from_pretrained(folder / "base", device_map=places, offload_folder=str(folder / "offload")).eval()


def hooks_on_leaves(base: Any, folder: Path) -> Any:
    for module in base.modules():
        if isinstance(module, nn.Linear):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    return base


def two_hooks_on_leaves(base: Any, folder: Path) -> Any:
    for module in base.modules():
        if isinstance(module, nn.Linear):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
            add_hook_to_module(module, ModelHook(), append=True)
    return base


def hook_on_the_root(base: Any, folder: Path) -> Any:
    return add_hook_to_module(base, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def prepared(base: Any, folder: Path) -> Any:
    return Accelerator(cpu=True).prepare(base)


def methods_on_instances(base: Any, folder: Path) -> Any:
    """The forward of a class, bound to the instance, as some loaders leave it."""
    for module in base.modules():
        module.forward = types.MethodType(type(module).forward, module)
    return base


def swiglu(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def patched_blocks(base: Any, folder: Path) -> Any:
    """As Liger does: another function bound to modules around the targets."""
    for layer in base.model.layers:
        layer.mlp.forward = types.MethodType(swiglu, layer.mlp)
    return base


def patched_with_closures(base: Any, folder: Path) -> Any:
    """Functions over `self`, over a bound method, and over a child."""

    def closed(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        down, up = mlp.down_proj, mlp.up_proj.forward
        return lambda x: down(nn.functional.silu(mlp.gate_proj(x)) * up(x))

    for layer in base.model.layers:
        layer.mlp.forward = closed(layer.mlp)
        attention = layer.self_attn
        attention.forward = functools.partial(type(attention).forward, attention)
    return base


def compiled(base: Any, folder: Path) -> Any:
    return torch.compile(base, backend="eager")


def compiled_in_place(base: Any, folder: Path) -> Any:
    base.compile(backend="eager")
    return base


def compiled_regions(base: Any, folder: Path) -> Any:
    for layer in base.model.layers:
        layer.compile(backend="eager")
    return base


def with_forward_hooks(base: Any, folder: Path) -> Any:
    """A hook that would show if it ran on the base's module instead of the view's."""
    for layer in base.model.layers:
        layer.seen = []
        layer.register_forward_hook(lambda module, args, out: module.seen.append(module))
    return base


PREPARED = pytest.mark.parametrize(
    "prepare",
    [
        dispatched_to_disk,
        dispatched_to_cpu,
        offloaded_to_cpu,
        loaded_with_a_device_map,
        hooks_on_leaves,
        two_hooks_on_leaves,
        hook_on_the_root,
        prepared,
        methods_on_instances,
        patched_blocks,
        patched_with_closures,
        compiled,
        compiled_in_place,
        compiled_regions,
        with_forward_hooks,
    ],
    ids=lambda f: f.__name__,
)


@PREPARED
def test_the_adapter_acts_and_the_base_stays(prepare: Prepare, tmp_path: Path) -> None:
    plain = tiny.base("llama")
    reference = view_of(plain)
    before = tiny.logits(plain)

    base = prepare(tiny.base("llama"), tmp_path)
    assert torch.allclose(tiny.logits(base), before, atol=1e-6)
    view = view_of(base)
    assert torch.allclose(tiny.logits(view), tiny.logits(reference), atol=1e-5)
    assert torch.allclose(tiny.logits(base), before, atol=1e-6)
    assert not torch.allclose(tiny.logits(view), before, atol=1e-2)
    with view.disable_adapter():
        assert torch.allclose(tiny.logits(view), before, atol=1e-6)

    for v in (view, reference):
        v(**tiny.batch()).loss.backward()
    assert gradients(view).keys() == tiny.adapter_parameters(view).keys()
    for key, value in gradients(reference).items():
        assert torch.allclose(gradients(view)[key], value, atol=1e-5), key
    torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.1).step()
    assert torch.allclose(tiny.logits(base), before, atol=1e-6)
    assert all(p.device.type == "cpu" for p in tiny.adapter_parameters(view).values())


@PREPARED
def test_it_saves_and_loads(prepare: Prepare, tmp_path: Path) -> None:
    view = view_of(prepare(tiny.base("llama"), tmp_path))
    view.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(prepare(tiny.base("llama"), tmp_path / "again"), str(tmp_path / "adapter"))
    plain = PeftModel.from_pretrained(tiny.base("llama"), str(tmp_path / "adapter"))
    assert torch.allclose(tiny.logits(again), tiny.logits(view), atol=1e-6)
    assert torch.allclose(tiny.logits(plain), tiny.logits(view), atol=1e-5)


@PREPARED
def test_rows_with_their_own_adapters(prepare: Prepare, tmp_path: Path) -> None:
    """`adapter_names` is handled by the view's forward: a hook around the base's must lead to it."""
    view, reference = (
        view_of(prepare(tiny.base("llama"), tmp_path)),
        view_of(tiny.base("llama")),
    )
    inputs = {**tiny.batch(), "adapter_names": ["__base__", "default"]}
    with torch.no_grad():
        assert torch.allclose(view(**inputs).logits, reference(**inputs).logits, atol=1e-5)


def test_prepared_with_bf16_autocast(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    base = accelerator.prepare(tiny.base("llama"))
    before = tiny.logits(base)
    view = view_of(base)
    assert tiny.logits(view).dtype == torch.float32
    assert not torch.allclose(tiny.logits(view), before, atol=1e-1)
    later = accelerator.prepare(view_of(tiny.base("llama")))
    assert torch.allclose(tiny.logits(view), tiny.logits(later), atol=1e-5)
    assert torch.equal(tiny.logits(base), before)
    for v in (view, later):
        accelerator.backward(v(**tiny.batch()).loss)
    for key, value in gradients(later).items():
        assert torch.allclose(gradients(view)[key], value, atol=1e-5), key
    assert accelerator.unwrap_model(later) is later
    with torch.autocast("cpu", torch.bfloat16):
        unwrapped = tiny.logits(accelerator.unwrap_model(later, keep_fp32_wrapper=False))
    assert torch.allclose(unwrapped.float(), tiny.logits(view), atol=1e-5)


def test_hooks_added_to_a_view_act_and_come_off(tmp_path: Path) -> None:
    base = tiny.base("llama")
    view = view_of(base)
    expected = tiny.logits(view)
    calls: list[nn.Module] = []

    class Count(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append(module)
            return args, kwargs

    host = view.model.layers[0].self_attn.q_proj
    for module in (view, host):
        add_hook_to_module(module, Count())
    assert torch.equal(tiny.logits(view), expected)
    assert calls == [view, host]
    tiny.logits(base)
    assert len(calls) == 2
    remove_hook_from_module(view, recurse=True)
    assert torch.equal(tiny.logits(view), expected)
    assert len(calls) == 2


def test_removing_a_hook_that_came_with_the_base_leaves_the_adapter(tmp_path: Path) -> None:
    base = hook_on_the_root(hooks_on_leaves(tiny.base("llama"), tmp_path), tmp_path)
    view = view_of(base)
    expected = tiny.logits(view)
    remove_hook_from_module(view, recurse=True)
    assert torch.equal(tiny.logits(view), expected)
    inputs = {**tiny.batch(), "adapter_names": ["default", "default"]}
    with torch.no_grad():
        assert torch.allclose(view(**inputs).logits, expected, atol=1e-6)
    assert hasattr(base, "_hf_hook")


def test_adapters_come_off_hooked_hosts(tmp_path: Path) -> None:
    base = hooks_on_leaves(tiny.base("llama"), tmp_path)
    before = tiny.logits(base)
    view = view_of(base)
    view.delete_adapter("default")
    assert torch.equal(tiny.logits(view), before)


IN_PLACE = [hooks_on_leaves, hook_on_the_root, methods_on_instances, dispatched_to_cpu]
HOOKED = pytest.mark.parametrize("prepare", IN_PLACE)
OFFLOADED = pytest.mark.parametrize("prepare", [dispatched_to_disk, offloaded_to_cpu, loaded_with_a_device_map])


@HOOKED
def test_a_hooked_model_merges(prepare: Prepare, tmp_path: Path) -> None:
    view = view_of(prepare(tiny.base("llama"), tmp_path))
    expected = tiny.logits(view)
    merged = view.merge_and_unload()
    assert type(merged) is type(tiny.base("llama"))
    assert torch.allclose(tiny.logits(merged), expected, atol=1e-5)
    view.merge_adapter()
    assert torch.allclose(tiny.logits(view), expected, atol=1e-5)
    view.unmerge_adapter()
    assert torch.equal(tiny.logits(view), expected)


@OFFLOADED
def test_offloaded_weights_do_not_merge(prepare: Prepare, tmp_path: Path) -> None:
    view = view_of(prepare(tiny.base("llama"), tmp_path))
    expected = tiny.logits(view)
    for merge in (view.merge_adapter, view.merge_and_unload):
        with pytest.raises(StateError, match="offloaded"):
            merge()
    assert torch.equal(tiny.logits(view), expected)


@OFFLOADED
def test_offloaded_weights_are_not_trained_in_full(prepare: Prepare, tmp_path: Path) -> None:
    base = prepare(tiny.base("llama"), tmp_path)
    with pytest.raises(TargetError, match="offloaded"):
        get_peft_model(base, lora(target_modules=["v_proj"], modules_to_save=["q_proj"]))


def test_a_model_on_meta_gets_adapters_on_meta() -> None:
    with torch.device("meta"):
        base = tiny.base("llama")
    view = get_peft_model(base, lora())
    assert {p.device.type for p in view.parameters()} == {"meta"}
    assert view.get_nb_trainable_parameters()[0] == sum(p.numel() for p in tiny.adapter_parameters(view).values())


# ---------------------------------------------------------------- a forward that leads elsewhere


def unrelated(x: torch.Tensor) -> torch.Tensor:
    return x


def test_a_target_with_a_foreign_forward_is_refused() -> None:
    base = tiny.base("llama")
    base.model.layers[1].self_attn.q_proj.forward = unrelated
    with pytest.raises(TargetError, match="forward"):
        get_peft_model(base, lora())
    assert all(p.requires_grad for p in base.parameters())
    fill(get_peft_model(base, lora(target_modules=["v_proj"])))  # elsewhere it does no harm


def test_a_target_whose_forward_computes_by_itself_is_refused() -> None:
    base = tiny.base("llama")
    host = base.model.layers[0].self_attn.v_proj
    host.forward = types.MethodType(lambda self, x: x @ self.weight.t(), host)
    with pytest.raises(TargetError, match="forward"):
        get_peft_model(base, lora())


def test_a_root_whose_forward_computes_by_itself_is_refused() -> None:
    base = tiny.base("llama")
    base.forward = types.MethodType(lambda self, **inputs: self.model(**inputs), base)
    with pytest.raises(TargetError, match="set it after"):
        get_peft_model(base, lora())


def test_a_forward_set_after_the_view_was_made_keeps_the_adapters() -> None:
    """As Liger (in Trainer) and TRL's fused heads do, on what `get_base_model` returns."""
    base = tiny.base("llama")
    view = view_of(base)
    expected, before = tiny.logits(view), tiny.logits(base)

    def fused(self: Any, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids, **kwargs).last_hidden_state)
        return types.SimpleNamespace(logits=logits, loss=logits.square().mean())

    plain = view.get_base_model()
    plain.forward = types.MethodType(fused, plain)
    assert torch.allclose(tiny.logits(view), expected, atol=1e-6)
    view(**tiny.batch()).loss.backward()
    assert gradients(view).keys() == tiny.adapter_parameters(view).keys()
    assert torch.equal(tiny.logits(base), before)


def test_a_compiled_base_is_looked_through() -> None:
    base = tiny.base("llama")
    view = get_peft_model(torch.compile(base, backend="eager"), lora())
    assert isinstance(view, type(base))
    assert view.unload() is base
