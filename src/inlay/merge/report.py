"""What merging into quantised layers rounded away.

    E = Q(W') - W'      W': what the adapters make of W, which the layer held   Q: quantising as the layer does

By E the merged layer differs from the one with its adapters beside it: for a loss L, to first order,
|L(merged) - L(adapters)| <= sum over layers of ||dL/dW'|| ||E||, with Frobenius norms.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inlay.errors import InlayWarning


@dataclass(frozen=True)
class Rounding:
    """The rounding of one layer.

    Attributes:
        path: the layer.
        backend: how it is quantised.
        largest: max |E|.
        error: ||E||, the Frobenius norm.
        change: ||W' - W||, what the adapters wanted.
    """

    path: str
    backend: str
    largest: float
    error: float
    change: float

    @property
    def relative(self) -> float:
        """||E|| / ||W' - W||: from 1 on, rounding moves the weight more than the adapters do."""
        return self.error / self.change if self.change else math.inf if self.error else 0.0

    @classmethod
    def of(cls, path: str, backend: str, stored: Tensor, wanted: Tensor, before: Tensor) -> Rounding:
        """The rounding of `wanted`, W', to `stored`, Q(W'), in a layer that held `before`, W."""
        e = stored.float() - wanted.float()
        norm = torch.linalg.vector_norm
        return cls(path, backend, float(e.abs().max()), float(norm(e)), float(norm(wanted.float() - before.float())))


@dataclass(frozen=True)
class MergeReport:
    """The roundings of one merge, in the order of the layers; layers that are not quantised are not in it."""

    layers: list[Rounding] = field(default_factory=list)

    @property
    def worst(self) -> Rounding | None:
        """The layer whose rounding is largest beside what the adapters changed."""
        return max(self.layers, key=lambda layer: layer.relative, default=None)

    @property
    def error(self) -> float:
        """||E|| over all layers."""
        return math.hypot(*(layer.error for layer in self.layers))

    @property
    def change(self) -> float:
        """||W' - W|| over all layers."""
        return math.hypot(*(layer.change for layer in self.layers))

    def __str__(self) -> str:
        worst = self.worst
        if worst is None:
            return "No quantised layer was merged: nothing was rounded but to the weights' dtype."
        kinds = ", ".join(dict.fromkeys(layer.backend for layer in self.layers))
        return (
            f"{len(self.layers)} quantised layers ({kinds}): rounding ||E|| = {self.error:.3g} beside the adapters' "
            f"own change of {self.change:.3g}; worst at {worst.path}: ||E|| / ||W' - W|| = {worst.relative:.3g}, "
            f"max |E| = {worst.largest:.3g}."
        )

    def warn(self) -> None:
        """Warns if quantised layers were merged."""
        if self.layers:
            warnings.warn(
                f"Merging rounded to the quantised layers' precision. {self} merge_and_unload(dequantize=True) merges "
                "exactly, into dense layers; `merge_report` has every layer.",
                InlayWarning,
                stacklevel=4,
            )
