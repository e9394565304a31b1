"""Optimizers for LoRA: LoRA+ (other learning rates for A and B) and LoRA-FA (A frozen)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inlay.checks import check_number
from inlay.core.index import index_of
from inlay.errors import ConfigError, StateError
from inlay.io.keys import tensors_by_key


def _trained(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every trainable parameter of a model -> its key in the adapter's file (its own name if it is in none)."""
    index = index_of(model)
    keys = {id(t): k for n in index.configs for k, t in tensors_by_key(index.placed[n], index.configs[n]).items()}
    found = {p: keys.get(id(p), name) for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise StateError("No parameter of the model is trainable: activate an adapter with set_adapter(name) first.")
    return found


def _in_norms(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of normalisation layers, which are not decayed."""
    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            yield from module.parameters(recurse=False)


def create_loraplus_optimizer(
    model: nn.Module, optimizer_cls: type[Optimizer], *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> Optimizer:
    r"""LoRA+ (Hayou et al. 2024, arXiv 2402.12354): lr_B = ratio * lr_A.

    Groups, in this order, as in peft:

        A and whatever else is a matrix               lr             decayed
        adapters of embeddings (A and B)              lr_embedding   decayed
        B, and vectors (DoRA's lengths)               ratio * lr     decayed
        biases, and weights of normalisation layers   ratio * lr     not decayed

    Args:
        model: a view.
        optimizer_cls: e.g. `torch.optim.AdamW`; gets the groups and the rest of `kwargs`.
        lr: of A.
        loraplus_lr_ratio: of B's learning rate to A's, at least 1; the paper's is 16 or so.
        loraplus_lr_embedding: 1e-6 unless given.
        loraplus_weight_decay: 0 unless given.

    Raises:
        ConfigError: a rate is out of range. StateError: nothing is trainable.
    """
    check_number("lr", lr, 0.0)
    check_number("loraplus_lr_ratio", loraplus_lr_ratio, 0.0)
    decay = kwargs.pop("loraplus_weight_decay", 0.0)
    lr_embedding = kwargs.pop("loraplus_lr_embedding", 1e-6)
    check_number("loraplus_weight_decay", decay, 0.0)
    check_number("loraplus_lr_embedding", lr_embedding, 0.0)
    norms = set(_in_norms(model))
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    ups: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p, key in _trained(model).items():
        if ".lora_embedding_" in key:
            embeddings.append(p)
        elif ".lora_B." not in key and p.dim() != 1:
            matrices.append(p)
        elif key.rpartition(".")[2].endswith("bias") or p in norms:
            vectors.append(p)
        else:
            ups.append(p)
    groups = [
        {"params": matrices, "weight_decay": decay, "lr": lr},
        {"params": embeddings, "weight_decay": decay, "lr": lr_embedding},
        {"params": ups, "weight_decay": decay, "lr": lr * loraplus_lr_ratio},
        {"params": vectors, "weight_decay": 0.0, "lr": lr * loraplus_lr_ratio},
    ]
    make: Any = optimizer_cls
    made: Optimizer = make(groups, lr=lr, **kwargs)
    return made


class LoraFAOptimizer(Optimizer):
    r"""LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays, B is stepped so that W moves as by its own gradient.

    With G the gradient of B, AdamW steps along (1 / s^2) G (A A^T + 1e-8)^-1, which minimises ||s G' A - dW||: of all
    steps of B, the one that changes W most like full training. Parameters without a partner get plain AdamW.

    Args:
        params: parameters, or groups of them.
        partners: B -> (A: (r, ...), s). A is not stepped.
        lr, betas, eps, weight_decay, correct_bias: AdamW's, as peft's LoRA-FA has them.

    State is kept per parameter, so `state_dict` and `load_state_dict` work as those of other optimizers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        partners: dict[nn.Parameter, tuple[Tensor, float]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            check_number(name, value, 0.0)
        for beta in betas:
            check_number("betas", beta, 0.0, 1 - 1e-9)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)
        self.partners = partners

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, computes the loss again and is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group)
        return loss

    def _step(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        grad: Any = p.grad
        if p in self.partners:
            grad = projected(grad, *self.partners[p])
        state = self.state[p]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        rate = group["lr"]
        if group["correct_bias"]:
            rate *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-rate)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])


def projected(grad: Tensor, a: Tensor, scale: float) -> Tensor:
    """(1 / s^2) G (A A^T + 1e-8)^-1, in float32 at least.   G: (out, r, ...)   A: (r, ...)"""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    rows = a.detach().to(dtype).flatten(1)
    gram = rows @ rows.T
    gram.diagonal().add_(1e-8)
    found: Tensor = torch.linalg.solve(gram, grad.to(dtype).flatten(1).T).T / scale**2
    return found.reshape(grad.shape).to(grad.dtype)


def create_lorafa_optimizer(
    model: nn.Module,
    r: int | None = None,
    lora_alpha: float | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> LoraFAOptimizer:
    """A `LoraFAOptimizer` for a view's trainable adapters, whose A it freezes.

    Args:
        r, lora_alpha, use_rslora: accepted for compatibility; each layer's own scale is used.

    Raises:
        StateError: nothing is trainable. ConfigError: an adapter of an embedding, whose A starts at zero and so has to
            be trained, or of a convolution with groups.
    """
    index = index_of(model)
    trained = _trained(model)
    partners: dict[nn.Parameter, tuple[Tensor, float]] = {}
    frozen: list[nn.Parameter] = []
    for name in sorted(index.trainable):
        for path, adapter in index.placed[name].items():
            own = adapter.tensors()
            if any(key.startswith("lora_embedding_") for key in own) or getattr(adapter, "groups", 1) > 1:
                raise ConfigError(
                    f"LoRA-FA cannot train the adapter at {path!r}: on an embedding A starts at zero, and would stay "
                    "there; with groups there is more than one A. Leave it out of target_modules."
                )
            a, b = getattr(adapter, "A", None), getattr(adapter, "B", None)
            if isinstance(a, nn.Parameter) and isinstance(b, nn.Parameter) and "lora_A.weight" in own:
                partners[b] = (a, float(adapter.scale))  # type: ignore[arg-type]
                frozen.append(a)
    if not partners:
        raise StateError("No LoRA adapter is trainable: create_lorafa_optimizer has nothing to do.")
    for a in frozen:
        a.requires_grad_(False)
    return LoraFAOptimizer([p for p in trained if p.requires_grad], partners, lr, weight_decay=weight_decay)
