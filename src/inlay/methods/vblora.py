"""VB-LoRA (Li et al. 2024, arXiv 2405.15179): LoRA whose A and B are made of vectors that all layers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.methods.factored import Factored, device_of
from inlay.methods.layout import LayoutConfig
from inlay.methods.targets import WIDER
from inlay.registry import adapter

_INDEX_DTYPES = ((2**8, torch.uint8), (2**15, torch.int16), (2**31, torch.int32))


@dataclass
class VBLoRAConfig(LayoutConfig, peft_type="VBLORA"):
    r"""W' = W + B A, the rows of A and the columns of B cut into pieces, each a mixture of k vectors of one bank V.

    V: (h, l)   A: (r, in)   B: (out, r)   piece = sum over the k largest logits i of softmax(logits)_i V_i

    Args:
        r: rank of the update.
        num_vectors: h, the number of vectors.
        vector_length: l; it must divide the inputs and outputs of every target.
        topk: k.
        save_only_topk_weights: write the k indices and weights of each piece, not its h logits: a far smaller file,
            for inference. Training goes on from the training state that is saved beside it.
        vblora_dropout: probability of zeroing an input of A in training.
        init_vector_bank_bound: V starts uniform between plus and minus this.
        init_logits_std: standard deviation of the initial logits. A new adapter is close to the identity, not equal.

    Raises:
        ConfigError: a field has a value that is not allowed, or `vector_length` does not divide a layer's size.
    """

    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    save_only_topk_weights: bool = False
    vblora_dropout: float = 0.0
    init_vector_bank_bound: float = 0.02
    init_logits_std: float = 0.1

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("r", "num_vectors", "vector_length", "topk"):
            check_int(name, getattr(self, name), 1)
        if self.topk > self.num_vectors:
            raise ConfigError.of("topk", self.topk, f"at most num_vectors={self.num_vectors}")
        check_number("vblora_dropout", self.vblora_dropout, 0.0, 1.0)
        check_number("init_vector_bank_bound", self.init_vector_bank_bound, 0.0)
        check_number("init_logits_std", self.init_logits_std, 0.0)
        check_bool("save_only_topk_weights", self.save_only_topk_weights)

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return WIDER.get(model_type or "")

    def bank(self, sites: Sequence[Site]) -> VectorBank:
        return VectorBank(self, sites[0])


class VectorBank(nn.Module):
    """V, trained. `site`: the place whose adapter initialises it."""

    def __init__(self, config: VBLoRAConfig, site: Site):
        super().__init__()
        self.bound, self.path = config.init_vector_bank_bound, site.path
        empty = torch.empty(config.num_vectors, config.vector_length, dtype=site.dtype, device=site.device)
        self.vectors = nn.Parameter(empty, requires_grad=False)


class Pieces(nn.Module):
    """The logits of the pieces of one factor: (n, m, h); or, `closed`, which k of them are the largest and their share.

    Closed is what `save_only_topk_weights` writes. The last share is what the others leave of 1, so there are k - 1.
    """

    def __init__(self, config: VBLoRAConfig, site: Site, shape: tuple[int, int], closed: bool):
        super().__init__()
        self.k, self.std, self.closed = config.topk, config.init_logits_std, closed
        self.dtype = next((dtype for limit, dtype in _INDEX_DTYPES if config.num_vectors < limit), torch.int64)
        self.indices: Tensor
        if closed:
            chosen = torch.empty(*shape, self.k - 1, dtype=site.dtype, device=site.device)
            self.shares = nn.Parameter(chosen, requires_grad=False)
            at = torch.zeros(*shape, self.k, dtype=self.dtype, device=device_of(site))
            self.register_buffer("indices", at)
        else:
            empty = torch.empty(*shape, config.num_vectors, dtype=site.dtype, device=site.device)
            self.logits = nn.Parameter(empty, requires_grad=False)
        self.count = config.num_vectors

    def reset(self) -> None:
        if self.closed:
            drawn = self.std * torch.randn(*self.shares.shape[:-1], self.count, device=self.shares.device)
            top = drawn.topk(self.k)
            self.indices.copy_(top.indices)
            self.shares.copy_(top.values.softmax(-1)[..., :-1])
        else:
            nn.init.normal_(self.logits, std=self.std)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """(indices, shares) of the k largest logits: (n, m, k) each."""
        if self.closed:
            return self.indices.long(), torch.cat([self.shares, 1 - self.shares.sum(-1, keepdim=True)], -1)
        top = self.logits.topk(self.k)
        return top.indices, F.softmax(top.values, -1)

    def mixed(self, vectors: Tensor) -> Tensor:
        """The pieces: (n, m, l)."""
        indices, shares = self.chosen()
        return (shares.unsqueeze(-1) * vectors[indices]).sum(-2)

    def tensors(self, key: str, small: bool) -> dict[str, Tensor]:
        if self.closed:
            return {f"{key}_topk_indices": self.indices, f"{key}_topk_weights": self.shares}
        if not small:
            return {key: self.logits}
        indices, shares = self.chosen()
        return {f"{key}_topk_indices": indices.to(self.dtype), f"{key}_topk_weights": shares[..., :-1]}


@adapter(VBLoRAConfig, "linear")
class VBLoRA(Factored):
    r"""W' = W + B A,  A[i, (j l):(j l + l)] = sum_k softmax(top_k(a_ij))_k V[k],  and B's columns likewise from b.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   V: (h, l)   a: (r, in/l, h)   b: (out/l, r, h)

    Li et al. 2024, arXiv 2405.15179. The softmax is over the k largest logits alone, which get the gradient.
    """

    def __init__(self, config: VBLoRAConfig, site: Site):
        super().__init__(config, site)
        length = config.vector_length
        for size in (site.in_features, site.out_features):
            if size % length:
                raise ConfigError.of(
                    "vector_length", length, f"a divisor of the {size} inputs or outputs of {site.path!r}"
                )
        self.dropout, self.small = config.vblora_dropout, config.save_only_topk_weights
        closed = self.small and config.inference_mode
        self.bank: VectorBank = site.bank
        self.owner = self.bank.path == site.path
        self.a = Pieces(config, site, (config.r, site.in_features // length), closed)
        self.b = Pieces(config, site, (site.out_features // length, config.r), closed)

    def reset(self, host: nn.Module) -> None:
        if self.owner:
            nn.init.uniform_(self.bank.vectors, -self.bank.bound, self.bank.bound)
        self.a.reset()
        self.b.reset()

    def factors(self) -> tuple[Tensor, Tensor]:
        vectors = self.bank.vectors.to(next(self.a.parameters()).device)
        a, b = self.a.mixed(vectors), self.b.mixed(vectors)
        return a.flatten(1), b.transpose(1, 2).flatten(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.a.tensors("vblora_logits_A", self.small), **self.b.tensors("vblora_logits_B", self.small)}

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"base_model.vblora_vector_bank": self.bank.vectors}

    def training_state(self) -> dict[str, Tensor]:
        if not self.small or self.a.closed:
            return {}
        own: dict[str, Tensor] = {"vblora_logits_A": self.a.logits, "vblora_logits_B": self.b.logits}
        return {**own, "vblora_vector_bank": self.bank.vectors} if self.owner else own
