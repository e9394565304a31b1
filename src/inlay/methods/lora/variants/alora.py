"""Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397): an adapter that acts from its invocation on.

The invocation is a sequence of tokens, `alora_invocation_tokens`. The adapter acts on its last occurrence in a row and
on what follows. Keys and values of all that comes before are those of the base, so that one can go on with a cache of
the base's, which several such adapters can share. A row without the invocation is the base's.

The view looks for the invocation in the token ids of each call, and tells the layers (`invocation.spans`). A row is one
text: where several are packed into one, the last invocation is that of all. Layers that see other things, such as those
of an image encoder, are no targets for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inlay.errors import StateError
from inlay.kernels.lora import lora_add
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.linear import LoraLinear
from inlay.registry import adapter


@adapter(LoraConfig, "linear", variant="alora")
class ALoraLinear(LoraLinear):
    r"""y = x W^T + s (m x) A^T B^T + b,  m = 1 from the last invocation of a row on, 0 before.   arXiv 2504.12397.

    x: (batch, tokens, in)   W: (out, in)   A: (r, in)   B: (out, r)   m: (batch, tokens, 1)   s as in LoRA
    """

    mergeable = False
    unmergeable = "acts on some tokens only, those from its invocation on"

    def weight(self, w: Tensor) -> Tensor:
        raise NotImplementedError("Activated LoRA cannot be written as a change of the weight: it is for some tokens.")

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y, before = base(x, *args, **kwargs), ~self.acts(x, host)
        for inputs, down, up in self.parts(x.masked_fill(before, 0)):
            y = lora_add(y, inputs, down, up, self.scale)
        return y

    def acts(self, x: Tensor, host: Any) -> Tensor:
        """m: (batch, tokens, 1), as booleans. A row of the call may stand for several consecutive ones of x (beams)."""
        name = next(name for name, own in host.adapters.items() if own is self)
        span = host.active.facts.told.get(name)
        if span is None:
            raise StateError(
                f"Adapter {name!r} is an Activated LoRA, which acts from its invocation on. The view looks for that: "
                "call the view (get_peft_model), not a part of it or a model that was changed in place."
            )
        if x.dim() != 3 or not len(span) or len(x) % len(span):
            raise StateError(
                f"Adapter {name!r} is an Activated LoRA, but a layer it sits in is given {tuple(x.shape)} for a batch "
                f"of {len(span)} rows, where it needs (batch, tokens, features): leave it out of target_modules."
            )
        count = (span[:, 1] - span[:, 0]).to(x.device).repeat_interleave(len(x) // len(span))
        m: Tensor = torch.arange(x.shape[1], 0, -1, device=x.device) <= count[:, None]
        return m.unsqueeze(-1)
