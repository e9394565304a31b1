"""What an adapted host has for each of its adapters, under the names that peft's layers and files have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import nn

from inlay import registry
from inlay.core.index import AdapterIndex
from inlay.errors import StateError

# peft's type of a method -> names of what it trains in a layer, as in files, and of what else it keeps for each adapter
LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LORA": (LORA, ("r", "lora_alpha", "scaling", "lora_dropout", "use_dora", "lora_bias")),
    "ADALORA": ((*LORA[:4], "lora_E"), ("r", "lora_alpha", "scaling", "lora_dropout")),
    "BOFT": (("boft_R", "boft_s"), ()),
    "C3A": (("c3a_kernel",), ()),
    "FOURIERFT": (("fourierft_spectrum",), ()),
    "HRA": (("hra_u",), ()),
    "IA3": (("ia3_l",), ()),
    "LN_TUNING": (("ln_tuning_layers",), ()),
    "LOHA": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), ("r", "scaling")),
    "LOKR": (("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), ("r", "scaling")),
    "MISS": (("miss_block",), ()),
    "OFT": (("oft_R",), ()),
    "POLY": (("poly_lora_A", "poly_lora_B"), ()),
    "RANDLORA": (("randlora_lambda", "randlora_gamma"), ("r", "scaling")),
    "TRAINABLE_TOKENS": (("trainable_tokens_delta",), ()),
    "VBLORA": (("vblora_logits_A", "vblora_logits_B"), ()),
    "VERA": (("vera_lambda_b", "vera_lambda_d"), ()),
}


class PerAdapter(MutableMapping[str, Any]):
    """Adapter name -> a value of its adapter in one host. Writing goes to the adapter, where `put` says how."""

    def __init__(self, items: Mapping[str, Any], put: Callable[[str, Any], None] | None = None):
        self._items, self._put = dict(items), put

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if self._items.get(name) is value:
            return
        if self._put is None or name not in self._items:
            raise StateError(f"{name!r} cannot be replaced here: write into the tensor, or load another adapter.")
        self._put(name, value)
        self._items[name] = value

    def __delitem__(self, name: str) -> None:
        raise StateError(f"{name!r} is deleted with model.delete_adapter({name!r}).")

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


def types_in(host: Any) -> dict[str, str]:
    """Adapter name -> the method's name, of those in `host` that are a method's own: no copy of it, no trained rows."""
    found = {n: _type_of(type(a)) for n, a in host.adapters.items()}  # type: ignore[arg-type]
    return {n: t for n, t in found.items() if t is not None}


@functools.cache
def _type_of(cls: Any) -> str | None:
    return next((str(config.peft_type) for (config, _, _), c in registry.registered().items() if c is cls), None)


def place_of(host: Any) -> tuple[AdapterIndex, str]:
    """The index of the model that `host` is a part of, and its path there."""
    index = host.active.index
    path = None if index is None else next((p for p, h in index.hosts.items() if h is host), None)
    if path is None:
        raise StateError(f"The model that this {type(host).__name__} was a part of is gone: keep the model.")
    return index, path


def _live(adapter: Any) -> dict[str, Any]:
    """Key in a file -> the parameter that is trained."""
    found = {**adapter.tensors(), **adapter.training_state()}
    return {
        k: t if isinstance(t, nn.Parameter) else nn.Parameter(t.detach(), requires_grad=False) for k, t in found.items()
    }


def _holder(weight: Any, bias: Any, host: Any, down: bool) -> nn.Module:
    """A module as peft has it for a factor, over the live parameters."""
    if weight.dim() == 2:
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    elif weight.dim() > 2:
        cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[weight.dim() - 3]
        own = {k: getattr(host, k) for k in ("stride", "padding", "dilation", "padding_mode")} if down else {}
        shape = weight.shape[1] * host.groups, weight.shape[0], weight.shape[2:]
        made = cls(*shape, groups=host.groups, bias=bias is not None, device="meta", **own)
    else:
        made = nn.Module()
    return _holding(made, weight, bias)


def _holding(made: Any, weight: Any, bias: Any = None) -> nn.Module:
    made.weight = weight
    if bias is not None:
        made.bias = bias
    return made  # type: ignore[no-any-return]


def tensors_named(host: Any, name: str) -> PerAdapter:
    """Adapter name -> the parameter saved as `name`, or a module over those saved as `name.weight`, `name.bias`.

    Raises AttributeError unless an adapter in the host is of a method with that name.
    """
    methods = {n: t for n, t in types_in(host).items() if t in NAMES and name in NAMES[t][0]}
    if not methods:
        raise AttributeError(name)
    found: dict[str, Any] = {}
    for adapter_name in methods:
        live = _live(host.adapters[adapter_name])
        if f"{name}.weight" in live:
            found[adapter_name] = _holder(live[f"{name}.weight"], live.get(f"{name}.bias"), host, name.endswith("_A"))
        elif name in live:
            found[adapter_name] = live[name] if name != "lora_magnitude_vector" else _holding(nn.Module(), live[name])
    return PerAdapter(found)


# what layers have for each adapter beside tensors -> how it is read from adapter, config and path
VALUES: dict[str, Callable[[Any, Any, str], Any]] = {
    "r": lambda adapter, config, path: getattr(adapter, "r", None) or getattr(config, "init_r", None) or config.r,
    "lora_alpha": lambda adapter, config, path: config.alpha(path) if hasattr(config, "alpha") else config.lora_alpha,
    "scaling": lambda adapter, config, path: adapter.scale,
    "lora_dropout": lambda adapter, config, path: nn.Dropout(adapter.dropout) if adapter.dropout else nn.Identity(),
    "use_dora": lambda adapter, config, path: config.use_dora,
    "lora_bias": lambda adapter, config, path: config.lora_bias,
}


def _per_type(host: Any, name: str, strict: bool = False) -> dict[str, Any]:
    """Adapter name -> value, of the adapters whose method has one; if `strict`, AttributeError if there is none."""
    names = [n for n, t in types_in(host).items() if name in NAMES.get(t, ((), ()))[1]]
    if not names:
        return some({}) if strict else {}
    index, path = place_of(host)
    return {n: VALUES[name](host.adapters[n], index.configs[n], path) for n in names}


def some(found: Any) -> Any:
    """`found`, if there is anything in it. AttributeError otherwise."""
    if not found:
        raise AttributeError("no adapter in this layer is of a kind that has it")
    return found


def scales(host: Any, strict: bool = False) -> PerAdapter:
    """Adapter name -> s of W' = W + s D, which can be written. If `strict`, AttributeError if no adapter has an s."""

    def put(name: str, value: float) -> None:
        if host.adapters[name].merged:
            raise StateError(f"Adapter {name!r} is merged into this layer: unmerge it before changing its scale.")
        host.adapters[name].scale = float(value)

    return PerAdapter(_per_type(host, "scaling", strict), put)


def configured_scale(host: Any, name: str) -> float:
    """What the adapter's config says that s is."""
    index, path = place_of(host)
    return float(index.configs[name].scale(path))  # type: ignore[attr-defined]


def values_named(host: Any, name: str) -> PerAdapter:
    """Adapter name -> one of `VALUES`. AttributeError unless an adapter in the host is of a method that has it."""
    return scales(host, strict=True) if name == "scaling" else PerAdapter(_per_type(host, name, strict=True))
