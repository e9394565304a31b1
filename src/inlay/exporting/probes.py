r"""Whether two models compute the same: the largest difference of their logits on probes.

    difference = max |a - b|     allowed: tolerance * max(1, max |a|)

with a the source's logits and b those of what was written. The tolerance is that of the narrower dtype of the two:
rounding W' once, where a view adds W x and the update apart, moves logits by a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inlay.comparison.answers import evaluating
from inlay.core.host import end_of
from inlay.errors import ConfigError, NumericsError

TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "q8_0": 1e-1}
"""Dtype -> the difference allowed, as a share of the largest logit."""

Probes = Sequence[str] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Checks:
    """How what was written is compared with its source.

    Attributes:
        probes: texts, or a dict of the model's arguments; None for token ids drawn with a fixed seed.
        tolerance: the difference allowed, as a share of the largest logit; None for that of the dtype.
    """

    probes: Probes | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Difference:
    """How far what was written is from the view.

    Attributes:
        largest: the largest difference of a logit.
        allowed: what was allowed.
        effect: the largest difference that the adapter makes to its base, to compare with; None without an adapter.
        agreement: the share of places with the same likeliest entry.
        dtype: of the weights that were written.
    """

    largest: float
    allowed: float
    effect: float | None
    agreement: float
    dtype: str

    def __str__(self) -> str:
        moved = "" if self.effect is None else f"; the adapter moves them by {self.effect:.3g}"
        return (
            f"logits differ by at most {self.largest:.3g} (allowed {self.allowed:.3g}{moved}), "
            f"{self.agreement:.1%} of the likeliest tokens agree, {self.dtype}"
        )

    def notes(self) -> list[str]:
        """What the numbers say that may not be expected."""
        if self.effect is None:
            return []
        if self.effect == 0:
            return ["the adapter changes nothing on the probes: it is untrained, or they do not reach it"]
        if self.largest > self.effect / 10:
            return ["the difference is more than a tenth of what the adapter does: export in a wider dtype"]
        return []


def inputs_of(probes: Probes | None, view: Any, tokenizer: Any) -> list[dict[str, Tensor]]:
    """The model's arguments, one dict a probe.

    Built-in probes are two rows of 16 token ids, drawn with a fixed seed; for models without token embeddings there are
    none. Raises ConfigError if probes have to be given, or texts without a tokenizer.
    """
    if isinstance(probes, Mapping):
        return [dict(probes)]
    if probes is not None:
        if isinstance(probes, str) or not len(probes):
            raise ConfigError.of("probes", probes, "a list of texts, or a dict of the model's arguments")
        if not tokenizer:
            raise ConfigError.of("probes", list(probes)[:3], "tensors by argument where there is no tokenizer")
        texts = [tokenizer(text, return_tensors="pt")["input_ids"] for text in probes]
        return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in texts]
    embedding = end_of(view, "input")
    if not isinstance(embedding, torch.nn.Embedding):
        raise ConfigError.of(
            "probes", None, "a dict of the model's arguments, e.g. {'pixel_values': ...}", "It reads no token ids."
        )
    size = min(embedding.num_embeddings, len(tokenizer) if tokenizer else embedding.num_embeddings)
    ids = torch.randint(size, (2, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


def answers(model: Any, inputs: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """The first output (logits, or hidden states) for every probe, in float64, on the CPU."""
    device = next(model.parameters()).device
    with evaluating(model):
        outputs = [model(**{name: value.to(device) for name, value in given.items()}) for given in inputs]
    return [(out.logits if hasattr(out, "logits") else out[0]).double().cpu() for out in outputs]


def compared(
    wanted: Sequence[Tensor],
    base: Sequence[Tensor] | None,
    found: Sequence[Tensor],
    dtypes: Sequence[str],
    tolerance: float | None,
) -> Difference:
    """The difference between the source's answers, `wanted`, and `found`.

    Args:
        base: the answers without the adapter, if there is one.
        dtypes: of the two models' weights.

    Raises NumericsError if it is above what is allowed, or not a number.
    """
    share = max(TOLERANCES.get(d, 1e-4) for d in dtypes) if tolerance is None else tolerance
    pairs = list(zip(wanted, found, strict=True))
    largest = _largest(pairs)
    effect = None if base is None else _largest(zip(wanted, base, strict=True))
    allowed = share * max([1.0, *(float(a.abs().max()) for a in wanted)])
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs])
    made = Difference(largest, allowed, effect, float(same.double().mean()), dtypes[-1])
    if not largest <= allowed:
        whose = "the model does" if base is None else "base and adapter do"
        raise NumericsError(
            f"What was written does not compute what {whose}: {made}. Nothing was kept. Export in a wider dtype "
            "(float32), or, if this is near enough, pass a larger tolerance."
        )
    return made


def _largest(pairs: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in pairs)
