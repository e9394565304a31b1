"""Trainable tokens: single rows of an embedding trained in full, the rest frozen.

W'[i_k] = T[k], W'[j] = W[j] elsewhere.   W: (num, dim)   i: (n,) token indices   T: (n, dim), starts as W[i]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.host import Site, output_scale, unmerged_parameters, weight_of
from inlay.errors import ConfigError


class TokenRows(Adapter):
    """Trained rows of an embedding, or of a linear output head whose weight is tied to it.

    Args:
        indices: the tokens.
        tied_to: the adapter whose T this one shares; it is saved once, with that one.
    """

    reads_weight = True
    field = "trainable_token_indices"  # of the config, for errors

    def __init__(self, config: PeftConfig, site: Site, indices: Sequence[int], tied_to: TokenRows | None = None):
        super().__init__(config, site)
        host: Any = site.module
        count = int(site.in_features if site.kind == "embedding" else site.out_features)
        wrong = [i for i in indices if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < count]
        if wrong or len(set(indices)) != len(indices) or not indices:
            raise ConfigError.of(
                self.field,
                wrong or list(indices),
                f"distinct token indices from 0 to {count - 1} of {site.path!r}",
            )
        self.owner = tied_to is None
        self.indices: Tensor
        self.register_buffer("indices", torch.tensor(list(indices), device=host.weight.device), persistent=False)
        dim = site.out_features if site.kind == "embedding" else site.in_features
        self.rows: nn.Parameter = self.parameter(site, len(indices), dim) if tied_to is None else tied_to.rows

    def reset(self, host: Any) -> None:
        if self.owner:
            self.rows.copy_(weight_of(host)[self.indices])

    def weight(self, w: Tensor) -> Tensor:
        return w.index_copy(0, self.indices, self.rows.to(w.dtype))

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        rows = self.rows.to(y.dtype)
        if isinstance(host, nn.Embedding):
            if host.padding_idx is not None:  # the table gives its padding row no gradient either
                rows = torch.where(self.indices.unsqueeze(-1) == host.padding_idx, rows.detach(), rows)
            hit = x.unsqueeze(-1) == self.indices  # (..., n)
            mine = rows[hit.int().argmax(-1)] * output_scale(host)
            return torch.where(hit.any(-1, keepdim=True), mine, y)
        logits = x.to(y.dtype) @ rows.T
        if host.bias is not None:
            logits = logits + host.bias[self.indices]
        return y.index_copy(-1, self.indices, logits)

    def brings(self, host: nn.Module) -> list[nn.Parameter]:
        # rows of new tokens are made afresh whenever the base is resized
        return [p for p in unmerged_parameters(host).values() if p is not None]

    def tensors(self) -> dict[str, Tensor]:
        return {"token_adapter.trainable_tokens_delta": self.rows} if self.owner else {}
