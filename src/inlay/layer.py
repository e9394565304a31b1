"""Adapted hosts under the names that peft's layers have: `layer.lora_A["default"].weight`, `layer.scaling[...]`, ...

Thin answers over what a host holds anyway, for tools that look at layers. They stand behind the host's own class, and
a host's own attribute, parameter, buffer or child of the same name comes first: nothing of the host is hidden, and a
forward pass meets none of them. What is switched here (`set_adapter`, `enable_adapters`, `delete_adapter`) is
switched for the whole model, which has one set of active adapters; merging, scales and gradients are the layer's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from inlay.core.adapted import Adapted, clone_unadapted, stand_in
from inlay.core.copies import TrainedModule
from inlay.core.host import (
    UNMERGED,
    UNMERGED_ATTRIBUTES,
    canonical,
    is_transposed,
    unmerged_parameters,
    weight_of,
)
from inlay.errors import StateError
from inlay.per_adapter import (
    NAMES,
    PerAdapter,
    configured_scale,
    place_of,
    scales,
    some,
    tensors_named,
    types_in,
    values_named,
)


class Own:
    """Descriptor of a name that the host's own attributes, parameters, buffers and children come before."""

    def __init__(self, function: Callable[..., Any], call: bool = False):
        self.function, self.call, self.__doc__ = function, call, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type | None = None) -> Any:
        if host is None:
            return self.function if self.call else self
        for own in (host._parameters, host._buffers, host._modules):
            if self.name in own:
                return own[self.name]
        return self.function.__get__(host) if self.call else self.function(host)


def answer(function: Callable[..., Any]) -> Any:
    """A name that is read."""
    return Own(function)


def method(function: Callable[..., Any]) -> Any:
    """A name that is called."""
    return Own(function, call=True)


def _only(host: Any, names: str | Sequence[str]) -> list[str]:
    """`names` as a list. StateError for one that has no adapter in this host."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in host.adapters:
            raise StateError(f"There is no adapter {name!r} in this layer; it has: {', '.join(host.adapters)}.")
    return names


def without_adapters(host: Any) -> Any:
    """A plain object of an adapted host's own class, over the same parameters: what is merged is merged for good."""
    plain = clone_unadapted(host)
    for own in (UNMERGED, UNMERGED_ATTRIBUTES):
        plain.__dict__.pop(own, None)
    return plain


class LayerNames:
    """What stands behind the host's own class; `host` is an adapted one."""

    # ------------------------------------------------------------------ what there is

    @answer
    def base_layer(host: Any) -> Any:
        """The layer without its adapters: a plain object of its own class, over the same parameters."""
        return without_adapters(host)

    @method
    def get_base_layer(host: Any) -> Any:
        """`base_layer`."""
        return without_adapters(host)

    @answer
    def adapter_layer_names(host: Any) -> tuple[str, ...]:
        """The names of trained tensors that this layer answers to."""
        return tuple(dict.fromkeys(n for t in types_in(host).values() for n in NAMES.get(t, ((), ()))[0]))

    @answer
    def other_param_names(host: Any) -> tuple[str, ...]:
        """The names of what else this layer has for each adapter."""
        return tuple(dict.fromkeys(n for t in types_in(host).values() for n in NAMES.get(t, ((), ()))[1]))

    @answer
    def fan_in_fan_out(host: Any) -> bool:
        """Whether the layer stores its weight as (in, out)."""
        return is_transposed(host)

    @answer
    def modules_to_save(host: Any) -> PerAdapter:
        """Adapter name -> the copy of this module that it trains in full."""
        return PerAdapter(some({n: a.module for n, a in host.adapters.items() if isinstance(a, TrainedModule)}))

    @answer
    def original_module(host: Any) -> Any:
        """The module that `modules_to_save` are copies of."""
        some(host.modules_to_save)
        return without_adapters(host)

    @method
    def get_delta_weight(host: Any, adapter: str) -> Tensor:
        """W' - W of one adapter, laid out as the layer stores W."""
        (name,) = _only(host, adapter)
        if not host.adapters[name].mergeable:
            raise StateError(f"Adapter {name!r} {host.adapters[name].unmergeable}: there is no W' - W.")
        w = weight_of(stand_in(host, _parameters=unmerged_parameters(host)))
        return canonical(host, host.adapters[name].weight(w) - w)

    @method
    def adapter_state_dict_load_map(host: Any, adapter_name: str) -> dict[str, str]:
        """Name of an adapter's tensor in a file -> in the model's state dict, both behind this layer's path."""
        if adapter_name not in host.adapters:
            return {}
        adapter = host.adapters[adapter_name]
        own = {id(t): name for name, t in [*adapter.named_parameters(), *adapter.named_buffers()]}
        found = adapter.tensors().items()
        return {key: f"adapters.{adapter_name}.{own[id(t)]}" for key, t in found if id(t) in own}

    # ------------------------------------------------------------------ which are active

    @answer
    def active_adapters(host: Any) -> list[str]:
        """The model's active adapters."""
        return list(host.active.names)

    @answer
    def active_adapter(host: Any) -> str | list[str]:
        """The same; a string if it is one."""
        names: list[str] = host.active_adapters
        return names[0] if len(names) == 1 else names

    @answer
    def disable_adapters(host: Any) -> bool:
        """Whether the model's adapters are disabled."""
        return bool(host.active.disabled)

    @method
    def enable_adapters(host: Any, enabled: bool = True) -> None:
        """Lets the model answer with its adapters, or as its base."""
        host.active.disabled = not enabled

    @method
    def set_adapter(host: Any, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Activates adapters, in the whole model, and makes exactly those trainable (none in `inference_mode`).

        A name that the model has no adapter for has no effect: a pipeline tells all its models the same names.
        """
        index, _ = place_of(host)
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(adapter_names))
        known = [n for n in names if n in index.configs]
        wanted = [] if inference_mode else known
        if tuple(names) != index.active.names or set(wanted) != index.trainable:
            index.check_train(wanted)
            index.activate(known)
            index.active.set(names)
            index.train(wanted)

    @method
    def set_requires_grad(host: Any, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Makes adapters trainable, or not, in the whole model."""
        index, _ = place_of(host)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            index.require_grad(name, requires_grad)

    @method
    def delete_adapter(host: Any, adapter_name: str) -> None:
        """Removes an adapter from the whole model. Does nothing if it has none of that name (any more)."""
        index, _ = place_of(host)
        if adapter_name in index.configs:
            index.remove(adapter_name)

    # ------------------------------------------------------------------ merging and scales

    @answer
    def merged_adapters(host: Any) -> list[str]:
        """The adapters that are merged into this layer's weight."""
        return [n for n, a in host.adapters.items() if a.merged]

    @answer
    def merged(host: Any) -> bool:
        """Whether there is one."""
        return bool(host.merged_adapters)

    @method
    def merge(host: Any, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Merges adapters (by default the active ones) into this layer's weight; see `inlay.merge.weights`."""
        from inlay.merge.weights import merge

        index, path = place_of(host)
        own = index.at(path)
        wanted = index.active.names if adapter_names is None else adapter_names
        merge(own, [n for n in wanted if n in host.adapters and n not in own.merged])
        index.count_merged()

    @method
    def unmerge(host: Any) -> None:
        """Undoes every merge into this layer, bit-exactly."""
        from inlay.merge.weights import unmerge

        index, path = place_of(host)
        unmerge(index.at(path))
        index.count_merged()

    @method
    def set_scale(host: Any, adapter: str, scale: float) -> None:
        """s = `scale` times what the adapter's config says."""
        own = scales(host)
        if adapter in own:
            own[adapter] = scale * configured_scale(host, adapter)

    @method
    def scale_layer(host: Any, scale: float) -> None:
        """Multiplies s of the active adapters by `scale`."""
        own = scales(host)
        for name in [n for n in host.active.names if n in own]:
            own[name] = own[name] * scale

    @method
    def unscale_layer(host: Any, scale: float | None = None) -> None:
        """Divides s of the active adapters by `scale`; without one, s is again what the config says."""
        own = scales(host)
        for name in [n for n in host.active.names if n in own]:
            own[name] = configured_scale(host, name) if scale is None else own[name] / scale

    @method
    def update_layer(host: Any, *args: Any, **kwargs: Any) -> None:
        """Not offered."""
        raise StateError("Layers get adapters from the model: call model.add_adapter(name, config).")


def _name_them() -> None:
    for names, read in ((0, tensors_named), (1, values_named)):
        for name in dict.fromkeys(n for known in NAMES.values() for n in known[names]):
            own = Own(functools.partial(read, name=name))
            own.__set_name__(LayerNames, name)
            setattr(LayerNames, name, own)


_name_them()


class TunerLayer(Adapted):
    """The mixin of the hosts of views and of models that `inject_adapter_in_model` changed."""

    _behind = (LayerNames,)
