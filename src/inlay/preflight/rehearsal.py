"""One optimizer step of a recipe on tensors without memory: what it takes, counted operator by operator.

The model is made of its config under torch's FakeTensorMode, where an operator says shape and dtype of its results and
computes nothing. No weights are read, any size fits, and the code that runs is the one that will run: the method's own
forward and backward, attention, recomputation under gradient checkpointing, the optimizer. Every storage is counted
from the operator that makes it until nothing refers to it:

    peak = max over the step of the sum of bytes of the storages that are alive

What operators take inside themselves is not seen, nor what an allocator loses between blocks. Rehearsed are a CPU's
operators; a GPU's keep the same for backward. A quantised base is rehearsed dense, in float32 as
`prepare_model_for_kbit_training` has it, and the bytes of its packed weights are put in their place.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from inlay.core.host import is_transposed, kind_of
from inlay.errors import ConfigError
from inlay.recipe.base import bare_model
from inlay.recipe.recipe import FULL, Recipe
from inlay.recipe.trained import trained

_aten = torch.ops.aten
_FLOPS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


@dataclass(frozen=True)
class Memory:
    """Bytes that are alive at the peak of a step, on one device.

    Attributes:
        weights: the base's parameters and buffers.
        trained: the adapter, the gradients, the optimizer's states.
        activations: what forward keeps for backward, and what is at work.
        logits: all that is as wide as the vocabulary: logits, log-probabilities, their gradients.
    """

    weights: int
    trained: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.trained + self.activations + self.logits

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


class Rehearsal:
    """A recipe's model without memory. Making one raises what `get_peft_model` would: TargetError, ConfigError.

    Args:
        recipe: the recipe.
        arguments: as `training_arguments` gives them.
        steps: how many optimizer steps there will be, for methods with a schedule.
        config: the base's, if it was read already.

    Attributes:
        base, model: the base, and what is trained (the same if all is).
    """

    def __init__(self, recipe: Recipe, arguments: Any, steps: int, config: Any = None):
        self.recipe, self.arguments = recipe, arguments
        self._mode = FakeTensorMode()
        with self._mode, torch.device("cpu"), _Live():
            self.base = bare_model(recipe, config)
            self._packed_away = _packed_away(self.base, recipe.model.quantize)
            self.model = trained(recipe, self.base, steps)
            self.model.train()
            if recipe.train.gradient_checkpointing:
                newer = getattr(self.model, "activation_checkpointing_enable", None)  # its name in newer transformers
                (newer or self.model.gradient_checkpointing_enable)(arguments.gradient_checkpointing_kwargs)

    def parameters(self) -> tuple[int, int]:
        """(trained, all)."""
        from inlay.status import count_parameters

        return count_parameters(self.model)

    def saved(self) -> int:
        """Bytes of the tensors that are saved in the end."""
        if self.recipe.adapter.method == FULL:
            return sum(p.numel() * p.element_size() for p in self.model.parameters())
        from inlay.io.save import get_peft_model_state_dict

        with self._mode:
            return sum(t.numel() * t.element_size() for t in get_peft_model_state_dict(self.model).values())

    def step(self, batch: Mapping[str, Any]) -> tuple[Memory, int]:
        """(memory, FLOPs) of an optimizer's step, and of forward and backward on a batch as the collator makes it.

        FLOPs are two for each multiplication in matrix products and attention, with what is recomputed.
        """
        own = [p for p in self.model.parameters() if p.requires_grad]
        live = _Live(self.base.config.get_text_config().vocab_size)
        live.hold(self.base, "weights")
        live.hold(self.model, "trained")
        handles = [p.register_post_accumulate_grad_hook(lambda p: live.is_a("trained", p.grad)) for p in own]
        try:
            with self._mode, torch.device("cpu"), live:
                inputs = {k: self._mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in batch.items()}
                held = [self._stepped(own, live)]
                with self._autocast():
                    loss = self.model(**inputs).loss
                loss.backward()
                held.clear()
        finally:
            for handle in handles:
                handle.remove()
            for p in own:
                p.grad = None
        at = live.at_peak
        weights = at["weights"] - self._packed_away
        return Memory(weights, at["trained"], at["activations"], at["logits"]), live.flops

    def _stepped(self, own: list[nn.Parameter], live: _Live) -> Any:
        """The optimizer's states after a step; gradients stay only if more are added to them."""
        from transformers import Trainer

        with live.all("trained"):
            try:
                cls, options = Trainer.get_optimizer_cls_and_kwargs(self.arguments, self.model)
            except ImportError as error:
                raise ConfigError.of(
                    "train.optimizer", self.recipe.train.optimizer, "one installed", str(error)
                ) from error
            for p in own:
                p.grad = torch.zeros_like(p)
            states = _known(cls, own, options, self.arguments.device.type == "cuda")
            if self.recipe.passes == 1:
                for p in own:
                    p.grad = None
        return states

    def _autocast(self) -> Any:
        dtype = torch.bfloat16 if self.arguments.bf16 else torch.float16 if self.arguments.fp16 else None
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _known(cls: Any, own: list[nn.Parameter], options: dict[str, Any], at_once: bool) -> Any:
    """What an optimizer holds after a step. Others than torch's and transformers' are not run, but taken for Adam's."""
    if not cls.__module__.startswith(("torch.", "transformers.")):
        dtype = torch.uint8 if options.get("optim_bits") == 8 else torch.float32
        return [torch.zeros(2, p.numel(), dtype=dtype) for p in own]
    if at_once and cls.__module__.startswith("torch.") and not options.get("fused"):
        options = {**options, "foreach": True}  # as torch chooses on a GPU: faster, with temporaries of all parameters
    optimizer = cls(own, **options)
    optimizer.step()
    return optimizer


def _packed_away(base: Any, quantize: str) -> int:
    """The bytes that a base has less once bitsandbytes holds its linear layers but the head's.

    4 bits a number and, with double quantisation, 8 for 64 of them and 32 for 64 x 256; or 8 bits, and 32 a row.
    """
    if quantize == "none":
        return 0
    saved, head = 0, base.get_output_embeddings()
    for module in base.modules():
        if kind_of(module) == "linear" and module is not head:
            n = module.weight.numel()
            blocks = math.ceil(n / 64)
            rows = module.weight.shape[1 if is_transposed(module) else 0]
            packed = n // 2 + blocks + 4 * math.ceil(blocks / 256) if quantize == "nf4" else n + 4 * rows
            saved += n * module.weight.element_size() - packed
    return saved


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its own __init_subclass__
    """Counts bytes of storages from the operator that makes them until they are gone, and FLOPs.

    Questions that a model asks of values are answered with no. What is asked is whether masks are all ones, or rows
    not packed, so that the mask could be left out; for the longest batch of a run it cannot.
    """

    def __init__(self, vocabulary: int = 0):
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.at_peak = 0, Counter[str]()
        self._vocabulary, self._kind = vocabulary, ""
        self._alive: dict[int, tuple[Any, int, str]] = {}
        self._now, self._total, self._peak = Counter[str](), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        out = func(*args, **(kwargs or {}))
        if (formula := _FLOPS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                wide = t.dim() > 1 and t.shape[-1] == self._vocabulary
                self._count(t, self._kind or ("logits" if wide else "activations"))
        return out

    def hold(self, model: nn.Module, kind: str) -> None:
        """Counts parameters and buffers that were there before, but those that are counted already."""
        for t in (*model.parameters(), *model.buffers()):
            self._count(t, kind)

    def is_a(self, kind: str, t: Tensor) -> None:
        """Says what a tensor is that was counted as something else."""
        key = t.untyped_storage()._cdata
        reference, size, before = self._alive[key]
        self._alive[key] = reference, size, kind
        self._now[before] -= size
        self._now[kind] += size

    @contextmanager
    def all(self, kind: str) -> Iterator[None]:
        """Within this block everything that is made is of one kind."""
        self._kind = kind
        try:
            yield
        finally:
            self._kind = ""

    def _count(self, t: Tensor, kind: str) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage, lambda _: self._gone(key)), size, kind
        self._now[kind] += size
        self._total += size
        if self._total > self._peak:
            self._peak, self.at_peak = self._total, self._now.copy()

    def _gone(self, key: int) -> None:
        _, size, kind = self._alive.pop(key)
        self._now[kind] -= size
        self._total -= size
