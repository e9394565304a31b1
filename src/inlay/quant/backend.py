"""What a quantisation library has to say of its layers, and the table of libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from inlay.core.host import ancestry, numel
from inlay.errors import StateError


@dataclass(frozen=True)
class Replacement:
    """What a layer holds in place of its quantised weight: parameters, and attributes of the module."""

    parameters: dict[str, nn.Parameter]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """One way of quantising.

    Attributes:
        name: for messages.
        dequantise: layer -> W: (out, in), the numbers that it computes with.
        requantise: (layer, W) -> what it holds for W, quantised as before; None where that needs data.
        applies: whether a layer of such a class is quantised (at present).
        settle: readies a layer for training, in place, if that takes something.
        takes_float32: whether a layer computes with float32 inputs, whatever dtype it was loaded in.
    """

    name: str
    dequantise: Callable[[Any], Tensor]
    requantise: Callable[[Any, Tensor], Replacement] | None = None
    applies: Callable[[Any], bool] = lambda layer: True
    settle: Callable[[Any], None] = lambda layer: None
    takes_float32: bool = False


_BACKENDS: dict[str, Backend] = {}  # qualified name of a layer's class, or of its weight's -> backend


def register(backend: Backend, *classes: str) -> None:
    """Makes `backend` the one for layers, or weights, of these classes and what derives from them."""
    _BACKENDS.update(dict.fromkeys(classes, backend))
    _KNOWN.clear()


_KNOWN: dict[type, Backend | None] = {}  # class -> its backend: ancestries are walked once


def _registered(cls: type) -> Backend | None:
    if cls not in _KNOWN:
        _KNOWN[cls] = next((_BACKENDS[name] for name in ancestry(cls) if name in _BACKENDS), None)
    return _KNOWN[cls]


def backend_of(layer: nn.Module) -> Backend | None:
    """How `layer` is quantised; None if it is not."""
    found = _registered(type(layer)) or _registered(type(layer._parameters.get("weight")))
    return found if found is not None and found.applies(layer) else None


def is_quantised(layer: nn.Module) -> bool:
    """Whether `layer`'s weight is quantised."""
    return backend_of(layer) is not None


def dequantised(layer: nn.Module) -> Tensor:
    """W: (out, in) of a quantised layer, float32, as the layer computes with it.

    Raises StateError if the layer is not quantised, or keeps its weight in a form that cannot be read.
    """
    return _known(layer).dequantise(layer).detach().float()


def requantised(layer: nn.Module, w: Tensor) -> Replacement:
    """What `layer` holds for W: (out, in), quantised as its weight is now. `layer` stays as it is.

    Raises StateError where the backend cannot.
    """
    backend = _known(layer)
    if backend.requantise is None:
        raise StateError(
            f"A {backend.name} layer cannot hold other numbers: quantising takes calibration data. Call "
            "merge_and_unload(dequantize=True) for a dense model, and quantise that."
        )
    return backend.requantise(layer, w)


def settle(model: nn.Module) -> None:
    """Readies the quantised layers of `model` for training, in place (see the backends' files)."""
    for module in model.modules():
        backend = backend_of(module)
        if backend is not None:
            backend.settle(module)


def size(layer: Any) -> int:
    """How many numbers a quantised layer's weight stands for, however they are packed."""
    weight = layer._parameters.get("weight")
    return numel(weight) if weight is not None else math.prod((layer.in_features, layer.out_features))


def packed_in(layer: nn.Module) -> Tensor:
    """The tensor that holds a quantised layer's numbers: its weight, or the buffer or parameter that stands for it."""
    own = {**layer._buffers, **layer._parameters}
    return next(t for name in ("weight", "W_q", "qweight") if (t := own.get(name)) is not None)


def _known(layer: nn.Module) -> Backend:
    backend = backend_of(layer)
    if backend is None:
        raise StateError(f"This {type(layer).__name__} is not quantised, or in a way that is not known here.")
    return backend
