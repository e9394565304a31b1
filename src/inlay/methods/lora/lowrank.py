"""What LoRA's adapters have in common: A, B, the scale s, the anchor, dropout, and biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.core.adapter import Adapter, alias
from inlay.core.host import Site
from inlay.core.stored import StoredProduct
from inlay.errors import MismatchError
from inlay.kernels.lora import is_traced
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.inits import readable, starting_pair
from inlay.methods.lora.inits.random import reset_random

FACTORS = ("lora_A", "lora_B")  # the parameters A and B


class LowRank(Adapter):
    r"""W' = W + s (B A - B0 A0), for every kind of host.

    Inits that start from W itself (PiSSA, OLoRA, CorDA, LoRA-GA) would take what the adapter starts with out of the
    base. The base is not ours to change: the *anchor* A0, B0, frozen, is subtracted here instead. Without one, B A
    starts at zero and W' = W + s B A.

    The weight is seen as g matrices M: (g, rows, columns), one per group of a convolution, g = 1 otherwise.
    """

    a_key, b_key = "lora_A.weight", "lora_B.weight"
    groups = 1
    anchors = True  # whether inits that start from W apply to this kind of host

    A: Tensor = alias("lora_A")
    B: Tensor = alias("lora_B")
    c: Tensor | None = alias("lora_bias")
    A0: Tensor | None
    B0: Tensor | None
    live_scale: Tensor | None

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        self.register_buffer("live_scale", None, persistent=False)
        self.r, self.scale = config.rank(site.path), config.scale(site.path)
        self.dropout, self.init = config.lora_dropout, config.init_lora_weights
        self.plain_form = config.saved_plain
        own = getattr(site.module, "bias", None)
        trained = config.bias != "none" and isinstance(own, Tensor)
        self.b = nn.Parameter(own.detach().clone(), requires_grad=False) if trained else None  # type: ignore[union-attr]
        self.lora_bias = self.parameter(site, site.out_features) if config.lora_bias else None
        if self.c is not None and own is None:
            self.mergeable = False  # type: ignore[misc]  # there is no bias to merge c into
            self.unmergeable = "changes a bias as well (lora_bias), and that module has none"  # type: ignore[misc]
        self.register_buffer("A0", None)
        self.register_buffer("B0", None)

    def make(self, config: LoraConfig, site: Site, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        """Makes A and B of these shapes, and the anchor if the config's init has one."""
        self.lora_A, self.lora_B = self.parameter(site, *a), self.parameter(site, *b)
        if not (self.anchors and config.anchored):
            return
        with torch.no_grad():
            wide = readable(f"init_lora_weights={self.init!r}", site.path, site.module)
            wide = wide if wide.dtype == torch.float64 else wide.float()
            pairs = [
                starting_pair(config, site.path, m, self.r // self.groups, self.scale) for m in self.matrices(wide)
            ]
            self.A0 = torch.cat([a0 for a0, _ in pairs]).reshape(a).to(site.dtype)
            self.B0 = torch.cat([b0 for _, b0 in pairs]).reshape(b).to(site.dtype)

    def reset(self, host: nn.Module) -> None:
        if self.A0 is not None and self.B0 is not None:
            self.A.copy_(self.A0)
            self.B.copy_(self.B0)
            if self.c is not None:
                nn.init.zeros_(self.c)
        else:
            reset_random(self.A, self.B, self.c, self.r, self.init)

    # ------------------------------------------------------------------ the update as matrices

    def matrices(self, w: Tensor) -> Tensor:
        """W as M: (g, rows, columns), so that B A has rows and columns as M does."""
        return w.reshape(self.groups, w.shape[0] // self.groups, -1)

    def from_matrices(self, m: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrices`."""
        return m.reshape(shape)

    def with_anchor(self) -> tuple[Tensor, Tensor]:
        """[A - A0; A0] and [B, B - B0], in the shapes of A and B: their product is B A - B0 A0.

        So written it is exactly 0 at the start, and no small difference of large products in 16 bits later on.
        """
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return self.joined(self.A - self.A0, self.A0, self.B, self.B - self.B0)

    def joined(self, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of twice the rank, with the product B1 A1 + B2 A2."""
        first, second = (a.reshape(self.groups, -1, *a.shape[1:]) for a in (a1, a2))
        return torch.cat([first, second], 1).flatten(0, 1), torch.cat([b1, b2], 1)

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """A: (g, r/g, columns) and B: (g, rows, r/g), the anchor included, in their dtype or w's, whichever is wider.

        Merging so rounds once.
        """
        dtype = torch.promote_types(self.A.dtype, w.dtype)
        a, b = self.occupied() if self.A0 is None else self.with_anchor()
        rank = a.shape[0] // self.groups
        return a.to(dtype).reshape(self.groups, rank, -1), b.to(dtype).reshape(self.groups, -1, rank)

    def weight(self, w: Tensor) -> Tensor:
        a, b = self.factors(w)
        return w + self.from_matrices(self.scale * (b @ a), w.shape).to(w.dtype)

    # ------------------------------------------------------------------ hot-swapping (`inlay.hotswap`)

    @property
    def scale(self) -> Any:
        """s; where the compiler looks at an adapter that has room, a tensor, so that s may change in what it made."""
        return self._scale if self.live_scale is None or not is_traced() else self.live_scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(value)
        if self.live_scale is not None:
            self.live_scale.fill_(self._scale)

    def make_room(self, rank: int) -> None:
        """Room for updates of up to `rank`: A and B end in zeros, which is the same function. s becomes a tensor too.

        No group and no anchor, if `rank` is more than there is.
        """
        more = rank - self.A.shape[0]
        if more > 0:
            a = torch.cat([self.A, self.A.new_zeros(more, *self.A.shape[1:])])
            b = torch.cat([self.B, self.B.new_zeros(len(self.B), more, *self.B.shape[2:])], 1)
            self.lora_A = nn.Parameter(a.detach(), requires_grad=self.A.requires_grad)
            self.lora_B = nn.Parameter(b.detach(), requires_grad=self.B.requires_grad)
        if self.live_scale is None:
            self.live_scale = torch.tensor(self._scale, dtype=torch.float32, device=self.A.device)

    def occupied(self) -> tuple[Tensor, Tensor]:
        """A and B without room: of rank r."""
        return (self.A, self.B) if self.A.shape[0] == self.r else (self.A[: self.r], self.B[:, : self.r])

    def take(self, other: LowRank) -> None:
        """Becomes the same update as `other`, of no higher rank than there is room for, in the parameters there are."""
        self.r, self.scale = other.r, other.scale
        self.A.zero_()
        self.B.zero_()
        own = {**dict(self.named_parameters()), **dict(zip(FACTORS, self.occupied(), strict=True))}
        for name, value in other.named_parameters():
            own[name].copy_(value)

    def clear(self, host: Any) -> None:
        """Becomes no change at all."""
        self.A.zero_()
        self.B.zero_()
        if self.b is not None:
            self.b.copy_(host.bias)
        if self.c is not None:
            self.c.zero_()

    # ------------------------------------------------------------------ for `forward`

    def dropped(self, x: Tensor) -> Tensor:
        """Dropout on the adapter's input, in training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def parts(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(input, A, B) of each low-rank product to add. Dropout is on B A alone: what stands for W sees all of x."""
        inputs = self.dropped(x)
        if inputs is x or self.A0 is None or self.B0 is None:
            return [(inputs, *self.with_anchor())]
        return [(x, self.A0, -self.B0), (inputs, self.A, self.B)]

    def bias(self, b: Tensor | None) -> Tensor | None:
        own = b if self.b is None or b is None else self.b.to(b.dtype)
        if self.c is None:
            return own
        shift: Tensor = self.scale * self.c
        return shift if own is None else (own + shift).to(own.dtype)

    def shifted(self, y: Tensor, host: Any, *spread: int) -> Tensor:
        """`y`, computed with the host's bias, with the adapter's instead; `spread`: shape the bias takes in y."""
        if self.b is None and self.c is None:
            return y
        own: Any = self.bias(host.bias)
        shift: Tensor = own.to(y.dtype) if host.bias is None else own.to(y.dtype) - host.bias.to(y.dtype)
        return y + shift.view(-1, *spread)

    # ------------------------------------------------------------------ what is saved

    def tensors(self) -> dict[str, Tensor]:
        a, b = self.plain_factors() if self.plain_form else self.occupied()
        own: dict[str, Tensor] = {self.a_key: a, self.b_key: b}
        if self.c is not None:
            own["lora_B.bias"] = self.c
        return own if self.b is None else {**own, "base_layer.bias": self.b}

    @classmethod
    def stored_product(cls, config: LoraConfig, path: str, stored: Mapping[str, Tensor]) -> StoredProduct | None:
        missing = [key for key in (cls.a_key, cls.b_key) if key not in stored]
        if len(missing) == 2:
            return None
        if missing:
            raise MismatchError(f"{path!r} has no {missing[0]}, only its counterpart.", missing=missing)
        a, b, r = stored[cls.a_key], stored[cls.b_key], config.rank(path)
        rank = b.shape[1] if b.dim() > 1 else 0  # of a group
        if a.dim() < 2 or len(a) != r or not rank or r % rank or (a.dim() == 2 and rank != r):
            raise MismatchError(f"{path!r} has A {tuple(a.shape)} and B {tuple(b.shape)}, but its rank is {r}.")
        g = r // rank
        return StoredProduct(a.reshape(g, rank, -1), b.reshape(g, -1, rank), config.scale(path), not config.anchored)

    def plain_factors(self) -> tuple[Tensor, Tensor]:
        """A and B of rank 2r whose product is this update, to be used without an anchor."""
        if self.A0 is not None:
            return self.with_anchor()
        a, b = self.occupied()
        return self.joined(a, torch.zeros_like(a), b, torch.zeros_like(b))

    def training_state(self) -> dict[str, Tensor]:
        if not self.plain_form:
            return {}
        anchor = {"anchor_A": self.A0, "anchor_B": self.B0}
        own = {**self.tensors(), self.a_key: self.A, self.b_key: self.B, **anchor}
        return {key: tensor for key, tensor in own.items() if tensor is not None}

    def replaces(self, host: nn.Module) -> list[nn.Parameter]:
        return [] if self.b is None else [host.bias]  # type: ignore[list-item]
