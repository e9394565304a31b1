"""LoRA on embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.core.host import Site, output_scale
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import LowRank
from inlay.registry import adapter


@adapter(LoraConfig, "embedding")
class LoraEmbedding(LowRank):
    r"""W' = W + s (B A)^T,  y = W[x] + s A^T[x] B^T.   Hu et al. 2021, arXiv 2106.09685, as loralib has it.

    x: (...) token ids   W: (num, dim)   A: (r, num)   B: (dim, r)   s = alpha / r, or alpha / sqrt(r)

    A starts at zero and B normal; with `init_lora_weights=False` both are normal. An embedding that scales its rows
    scales the update with them; its padding row gets no gradient, as the table's own does not. As in peft, the input is
    not dropped out (ids cannot be), and inits that decompose a weight leave embeddings as by default.
    """

    a_key, b_key = "lora_embedding_A", "lora_embedding_B"
    anchors = False

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        self.make(config, site, (self.r, site.in_features), (site.out_features, self.r))

    def reset(self, host: nn.Module) -> None:
        for p in (self.A, self.B):
            nn.init.normal_(p)
        if self.init is not False:  # B is drawn again, as in peft: the same seed gives the same adapter
            nn.init.zeros_(self.A)
            nn.init.normal_(self.B)

    def matrices(self, w: Tensor) -> Tensor:
        return w.T.unsqueeze(0)

    def from_matrices(self, m: Tensor, shape: torch.Size) -> Tensor:
        return m[0].T

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        low = F.embedding(x, self.A.T, host.padding_idx) @ self.B.T
        return y + (self.scale * output_scale(host) * low).to(y.dtype)
