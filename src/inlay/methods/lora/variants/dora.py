"""DoRA, weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv 2402.09353): a trained length, a LoRA direction.

    V = W + s B A,  n = ||V|| for each output,  W' = (m / n) V,  m = n at the start

n follows A and B but counts as a constant in backward, as in section 4.3 of the paper and in peft. It is found without
making B A, let alone a product with an identity matrix:

    n^2 = ||W||^2 + 2 s <W A^T, B> + s^2 <B (A A^T), B>      (sums over each row; W A^T: (out, r), A A^T: (r, r))

in float32 at least; a 16-bit W is read as it is, not widened. With y the output that LoRA gives, W x + s B A x + b,
DoRA's is y + (m / n - 1) (y - b): backward goes through y alone, and where 16 bits are coarse, near 1, they are not
asked for m / n.

W is read for n in every forward pass. The base's weight is shared, and may change under a view without notice
(`load_state_dict`, `.data`), so ||W|| is not remembered; to generate much text, merge. (A quantised W is
dequantised each time.)

Dropout, in training, is on the input of A. (peft draws it for W x as well, the mean of which is the same, and pays a
second product with W.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.core.adapter import alias
from inlay.core.host import Site, weight_of
from inlay.core.stored import StoredProduct
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.conv import CONVS, LoraConv
from inlay.methods.lora.embedding import LoraEmbedding
from inlay.methods.lora.inits import readable
from inlay.methods.lora.linear import LoraLinear
from inlay.methods.lora.lowrank import LowRank
from inlay.quant import is_quantised
from inlay.registry import adapter


class Dora(LowRank):
    """What DoRA's adapters have in common: the length m, and how it changes LoRA's weight and output."""

    reads_weight = True

    m: Tensor = alias("lora_magnitude_vector")
    outputs = 0  # dimension of the canonical weight that counts the outputs

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        weight = site.module._parameters.get("weight")
        if weight is not None and not weight.is_meta and not is_quantised(site.module):
            readable("use_dora=True", site.path, site.module)
        spread = [1] * (self.A.dim() - 2)
        self.lora_magnitude_vector = self.parameter(
            site, *([1, site.out_features, *spread] if spread else [site.out_features])
        )

    def reset(self, host: Any) -> None:
        super().reset(host)
        self.m.copy_(self.norm(weight_of(host)).view_as(self.m))

    def clear(self, host: Any) -> None:
        super().clear(host)
        self.m.copy_(self.norm(weight_of(host)).view_as(self.m))

    def norm(self, w: Tensor) -> Tensor:
        """n: (out,), a constant, in float32 or w's dtype if that is wider."""
        with torch.no_grad(), torch.autocast(w.device.type, enabled=False):
            dtype = torch.promote_types(w.dtype, torch.float32)
            a, b = self.with_anchor()
            rank = a.shape[0] // self.groups
            a, b = a.to(dtype).reshape(self.groups, rank, -1), b.to(dtype).reshape(self.groups, -1, rank)
            return row_norms(self.matrices(w), a, b, self.scale).flatten()

    def ratio(self, w: Tensor) -> Tensor:
        """m / n: (out,)"""
        n = self.norm(w)
        return self.m.flatten().to(n.dtype) / n

    def weight(self, w: Tensor) -> Tensor:
        shape = [1] * w.dim()
        shape[self.outputs] = -1
        return super().weight(w) * self.ratio(w).view(shape).to(w.dtype)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = super().forward(base, x, *args, host=host, **kwargs)
        spread = [1] * (self.m.dim() - 2)
        change = (self.ratio(weight_of(host)) - 1).to(y.dtype).view(-1, *spread)
        b = self.bias(getattr(host, "bias", None))
        return torch.addcmul(y, y if b is None else y - b.to(y.dtype).view(-1, *spread), change)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "lora_magnitude_vector": self.m}

    @classmethod
    def stored_product(cls, config: LoraConfig, path: str, stored: Mapping[str, Tensor]) -> StoredProduct | None:
        found = super().stored_product(config, path, stored)
        return found and dataclasses.replace(found, whole=False)


def row_norms(w: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """||W + s B A|| of each row, in A's dtype.   W: (g, rows, columns)   A: (g, r, columns)   B: (g, rows, r)

    A 16-bit W is read as it is, with A as the sum of two 16-bit matrices: what is rounded is a small part of n^2.
    """
    if w.dtype == a.dtype:
        product = torch.bmm(w, a.mT)
    else:
        high = a.to(w.dtype)
        low = (a - high.to(a.dtype)).to(w.dtype)
        both = torch.bmm(w, torch.cat([high, low], 1).mT).to(a.dtype)
        product = both[..., : a.shape[1]] + both[..., a.shape[1] :]
    mixed = (product * b).sum(-1)
    own = (torch.bmm(b, torch.bmm(a, a.mT)) * b).sum(-1)
    length = torch.linalg.vector_norm(w, dim=-1, dtype=a.dtype)
    square: Tensor = length.square() + 2 * scale * mixed + scale**2 * own
    return square.clamp_min(torch.finfo(a.dtype).tiny).sqrt()


@adapter(LoraConfig, "linear", variant="dora")
class DoraLinear(Dora, LoraLinear):
    r"""W' = (m / n) (W + s B A), n = ||W + s B A|| of each row.   Liu et al. 2024, arXiv 2402.09353.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   m, n: (out,)
    """


@adapter(LoraConfig, "embedding", variant="dora")
class DoraEmbedding(Dora, LoraEmbedding):
    r"""W' = (m / n) (W + s (B A)^T), n = ||W + s (B A)^T|| of each column: of each feature over the whole vocabulary.

    x: (...) token ids   W: (num, dim)   A: (r, num)   B: (dim, r)   m, n: (dim,)
    """

    outputs = 1


@adapter(LoraConfig, *CONVS, variant="dora")
class DoraConv(Dora, LoraConv):
    r"""W' = (m / n) (W + s B A), n = ||W + s B A|| of each output channel, over inputs and kernel.

    W: (out, in/g, *k)   A: (r, in/g, *k)   B: (out, r/g, 1...)   m, n: (1, out, 1...)
    """
