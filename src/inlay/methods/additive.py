"""Methods that add a matrix made of few numbers: W' = W + D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.adapter import Adapter
from inlay.core.host import product


class Additive(Adapter):
    r"""W' = W + D,  y = base(x) + D x, on linear layers and convolutions; a method says what D is.

    The host's weight is not needed, so any host will do, quantised ones included.
    """

    def change(self, dtype: torch.dtype) -> Tensor:
        """D, shaped as the canonical weight, in the parameters' dtype or `dtype`, whichever is wider."""
        raise NotImplementedError

    def added(self, x: Tensor, host: nn.Module) -> Tensor:
        """D x: the host's operation with D as its weight, and no bias."""
        return product(host, x, self.change(x.dtype).to(x.dtype), None)

    def weight(self, w: Tensor) -> Tensor:
        return w + self.change(w.dtype).to(w.dtype)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        return y + self.added(x.to(y.dtype), host)
