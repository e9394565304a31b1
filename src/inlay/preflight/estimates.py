"""What a recipe will take: parameters, memory, time. No weights are read and nothing is trained.

Memory is that of one optimizer step on the longest rows, rehearsed on tensors without memory (`rehearsal.py`):

    total = weights + adapter, gradients, optimizer + activations + logits and loss

The last part is about 12 bytes x rows x length x vocabulary: logits and log-probabilities in float32, and a gradient.

Time is that of the step's FLOPs, at a share s of the rate that this machine multiplies matrices with:

    seconds = steps x accumulation x FLOPs of a batch / (s x rate)        rate: FLOP/s, measured for half a second

For N parameters of which A are an adapter's, a token takes about 4 N + 6 A FLOPs and attention's, 6 N where all is
trained, and 2 N more with gradient checkpointing; what is used is the count of the rehearsed step.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from inlay.data import Collator, FlatCollator
from inlay.errors import InlayError
from inlay.preflight.machine import free_memory, name_of, product_rate
from inlay.preflight.rehearsal import Memory, Rehearsal
from inlay.recipe.recipe import FULL, Recipe, flat
from inlay.recipe.rows import items, steps_of
from inlay.train.arguments import training_arguments

ROOM = 0.9
"""The share of free memory that may be used: allocators lose some between blocks, and kernels take some for a while."""
SHARE = 0.4
"""The share of a large matrix product's rate that training is taken to reach."""
_MANY = 10**6
_QUIET: dict[str, Any] = {"watch.prompts": [], "report.trackers": [], "report.html": False}


@dataclass(frozen=True)
class Parameters:
    """How many there are, how many are trained, and the bytes of what is saved."""

    trained: int
    total: int
    saved: int

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Room:
    """Memory that a step takes, and what there is.

    Attributes:
        memory: of a step on the `batch` longest items, of `length` tokens each.
        device, free: the device's name, and its bytes that are free now.
        largest: the largest power of two that fits as `train.batch`; 0 if none does.
        remedy: keys of the recipe and the values that make a batch of 1 fit, where `largest` is 0; None if none do.
    """

    memory: Memory
    batch: int
    length: int
    device: str
    free: int
    largest: int
    remedy: Mapping[str, Any] | None = None

    @property
    def fits(self) -> bool:
        """Whether the recipe's own batch does."""
        return self.memory.total <= ROOM * self.free

    def change(self, recipe: Recipe) -> dict[str, Any] | None:
        """What to set so that the recipe fits, with as many rows a step as before; None if nothing is known to help."""
        if not self.largest:
            return None if self.remedy is None else {**self.remedy, **_same_step(recipe, 1)}
        return {} if self.fits else _same_step(recipe, self.largest)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "memory": self.memory.to_dict(), "fits": self.fits}


@dataclass(frozen=True)
class Duration:
    """Time that training takes.

    Attributes:
        steps: optimizer steps.
        tokens: of all the batches, padding included; `epoch`: of one epoch.
        flops: of all of it; None if steps were timed.
        seconds: an estimate; `assumed` says how it was made.
    """

    steps: int
    tokens: int
    epoch: int
    flops: float | None
    seconds: float
    assumed: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Estimates:
    """Estimates of a recipe for this machine.

    Args:
        recipe: the recipe. What `parallel` cuts up is taken to be whole.
        rows: to train on; without them only parameters are counted.
        tokenizer: the base's.
        config: the base's, if it was read already.
    """

    def __init__(self, recipe: Recipe, rows: Any, tokenizer: Any, config: Any = None):
        self.recipe, self._config = recipe, config
        self.items = items(recipe, rows) if rows is not None else []
        self.lengths: list[int] = getattr(self.items, "lengths", [])
        self._collate: Any = FlatCollator() if recipe.data.packing else tokenizer and Collator.of(tokenizer)
        self._order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        self._steps: dict[int, tuple[Memory, int]] = {}

    @cached_property
    def arguments(self) -> Any:
        """As Trainer has them."""
        return training_arguments(self.recipe, Path(self.recipe.out) / "checkpoints")

    @cached_property
    def steps(self) -> int:
        """Optimizer steps."""
        return steps_of(self.recipe, len(self.items), self.arguments) if self.items else _MANY

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """The model without memory."""
        return Rehearsal(self.recipe, self.arguments, self.steps, self._config)

    def parameters(self) -> Parameters:
        """Counted in the model."""
        return Parameters(*self.rehearsal.parameters(), self.rehearsal.saved())

    @property
    def dtype(self) -> str:
        """What the base's weights are kept in."""
        quantize = self.recipe.model.quantize
        return quantize if quantize != "none" else str(self.rehearsal.base.dtype).removeprefix("torch.")

    # ------------------------------------------------------------------ memory

    def room(self) -> Room:
        """What a step takes and what would fit."""
        device = self.arguments.device
        batch, free = self.recipe.per_pass, free_memory(device)
        memory, largest = self.step(batch)[0], self._largest(ROOM * free)
        remedy = None if largest else self._remedy(ROOM * free)
        return Room(memory, batch, max(self.lengths), name_of(device), free, largest, remedy)

    def step(self, batch: int) -> tuple[Memory, int]:
        """(memory, FLOPs) of a step on the longest items."""
        if batch not in self._steps:
            self._steps[batch] = self.rehearsal.step(self.longest(batch))
        return self._steps[batch]

    def longest(self, count: int, limit: int | None = None) -> dict[str, Any]:
        """A batch of the longest items, cut at `limit`; of all of them again where there are too few."""
        chosen = (self.items[i] for i in islice(cycle(self._order), count))
        rows = [{k: v[:limit] if isinstance(v, list) else v for k, v in item.items()} for item in chosen]
        return dict(self._collate(rows))

    def _largest(self, room: float) -> int:
        """By steps of the batch sizes around it: memory grows with the batch, and not slower than before."""
        if self.recipe.data.packing:  # packs go one by one
            return int(self._total(1) <= room)
        own = size = _power(self.recipe.train.batch)
        while size and self._total(size) > room:
            size //= 2
        if size < own:
            return size
        most = max(_power(len(self.items)), own)
        while size < most and self._total(2 * size) <= room:
            slope = (self._total(2 * size) - self._total(size)) / size
            left = (room - self._total(2 * size)) / max(slope, 1) + 2 * size
            guess = min(most, _power(left))
            while guess > 2 * size and self._total(guess) > room:
                guess //= 2
            size = guess
        return size

    def _total(self, batch: int) -> int:
        return self.step(batch)[0].total

    def _remedy(self, room: float) -> dict[str, Any] | None:
        """The first changes that make a batch of 1 fit."""
        longest = max(self.lengths)
        for changes in self._remedies(longest):
            try:
                recipe = changed(self.recipe, {**changes, "train.batch": 1})
                rehearsal = Rehearsal(recipe, self.arguments, self.steps, self._config)
                if rehearsal.step(self.longest(1, changes.get("data.max_length")))[0].total <= room:
                    return changes
            except InlayError:  # the method refuses it, as prefixes do gradient checkpointing
                continue
        return None

    def _remedies(self, longest: int) -> Iterator[dict[str, Any]]:
        less: dict[str, Any] = {}
        if not self.recipe.train.gradient_checkpointing:
            less = {"train.gradient_checkpointing": True}
            yield less
        if self.recipe.adapter.method == FULL:
            less = {**less, "adapter.method": "lora"}
            yield less
        if self.recipe.model.quantize != "nf4":
            yield {"model.quantize": "nf4", **({k: v for k, v in less.items() if k == "adapter.method"})}
            less = {**less, "model.quantize": "nf4"}
            yield less
        length = _power(longest - 1)
        while length >= 64:
            yield {**less, "data.max_length": length}
            length //= 2

    # ------------------------------------------------------------------ time

    def duration(self) -> Duration:
        """From the FLOPs of a step and the rate of a matrix product."""
        dtype = self._product_dtype()
        rate = product_rate(self.arguments.device, dtype)
        batch = self.recipe.per_pass
        tokens = self._tokens()
        flops = self.step(batch)[1] / (batch * max(self.lengths)) * tokens
        kind, device = str(dtype).removeprefix("torch."), name_of(self.arguments.device)
        assumed = f"at {SHARE:.0%} of the {rate / 1e12:.3g} TFLOP/s of a {kind} matrix product on {device}"
        return Duration(self.steps, tokens, self._epoch, flops, flops / (SHARE * rate), assumed)

    def measured(self, tries: int = 3) -> Duration:
        """From that many real steps after a first one, in a folder that is deleted. Reads the weights."""
        from inlay.train.training import train

        with tempfile.TemporaryDirectory() as folder:
            short: dict[str, Any] = {"train.max_steps": tries + 1, "train.log_every": 1, "train.save_every": _MANY}
            alone = dict.fromkeys(("data.eval", "train.eval_every", "train.early_stopping"))
            recipe = changed(self.recipe, {**short, **alone, **_QUIET, "out": f"{folder}/run"})
            run = train(recipe, say=lambda line: None)
            speeds = [line["tokens_per_second"] for line in run.metrics() if "tokens_per_second" in line][1:]
        tokens = self._tokens()
        seconds = tokens * sum(1 / speed for speed in speeds) / len(speeds)
        return Duration(self.steps, tokens, self._epoch, None, seconds, f"at the speed of {len(speeds)} steps made now")

    @cached_property
    def _epoch(self) -> int:
        return padded_tokens(self.lengths, self.recipe.per_pass, self.recipe.train.seed)

    def _tokens(self) -> int:
        how = self.recipe.train
        if how.max_steps is None:
            return round(self._epoch * how.epochs)
        batches = max(1, math.ceil(len(self.items) / self.recipe.per_pass))
        return round(self._epoch / batches * self.recipe.passes * how.max_steps)

    def _product_dtype(self) -> torch.dtype:
        if self.arguments.bf16 or (self.recipe.model.quantize != "none" and self.arguments.device.type == "cuda"):
            return torch.bfloat16
        found: torch.dtype = torch.float16 if self.arguments.fp16 else self.rehearsal.base.dtype
        return found


def _same_step(recipe: Recipe, batch: int) -> dict[str, Any]:
    """A smaller batch, with so many more passes that a step has as many rows as before, or a few more."""
    how = recipe.train
    return {"train.batch": batch, "train.accumulation": math.ceil(how.batch * how.accumulation / batch)}


def _power(n: float) -> int:
    """The largest power of two up to n."""
    return 1 << int(math.log2(max(n, 1)))


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some keys replaced. Another method's fields are left out."""
    values = dict(flat(recipe.model_dump(mode="json", exclude_unset=True)))
    if "adapter.method" in changes:
        values = {k: v for k, v in values.items() if not k.startswith("adapter.")}
    return Recipe.make({**values, **changes})


def padded_tokens(lengths: Sequence[int], batch: int, seed: int) -> int:
    """Tokens of an epoch of batches of shuffled rows, each row as long as the longest in its batch."""
    order = list(lengths)
    random.Random(seed).shuffle(order)
    batches = (order[at : at + batch] for at in range(0, len(order), batch))
    return sum(max(b) * len(b) for b in batches)
