"""BitFit: only the biases are trained (Ben Zaken et al. 2021, arXiv 2106.10199): b' = b + d."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from inlay.config import AdapterConfig
from inlay.core.adapted import stand_in
from inlay.core.classes import original_class
from inlay.core.copies import TrainedParameters
from inlay.core.host import Site
from inlay.errors import TargetError
from inlay.registry import adapter


def biases(module: nn.Module) -> list[str]:
    """Names of a module's own biases: `bias`, `q_bias`, `bias_hh_l0`, ..."""
    named = [n for n, p in module._parameters.items() if p is not None]
    return [n for n in named if n == "bias" or n.endswith("_bias") or n.startswith("bias_")]


@dataclass
class BitFitConfig(AdapterConfig, peft_type="BITFIT"):
    """b' = b + d for the biases of the targets, of every module that has one by default. Not in peft.

    The paper trains a new head along (`modules_to_save`, which a task type sets), with a learning rate of 1e-4 to 1e-3,
    and finds that the biases of the queries and of the feed-forward block's first layer do nearly as well alone:
    `target_modules=["query", "intermediate.dense"]` in BERT.

    Raises:
        TargetError, when an adapter is added: a target, or the whole model, has no bias.
    """

    def targets_in(self, modules: Mapping[str, Any], model_type: str | None) -> Sequence[str] | str | None:
        found = [path for path, module in modules.items() if path and biases(module)]
        if not found and self.target_modules is None:
            raise TargetError(
                "target_modules: the model has no bias that BitFit could train (Llama's family has none, for "
                "instance). Take another method: LNTuningConfig and IA3Config are as small.",
                "target_modules",
                None,
            )
        return found

    def bank(self, sites: Sequence[Site]) -> Any:
        """id of a bias -> its copy: biases that are tied stay tied."""
        return {}


@adapter(BitFitConfig, "module")
class BitFit(TrainedParameters):
    r"""W' = W, b' = b + d: in linear layers y = W x + b'. What is trained is b', which starts as b.

    x: (..., in)   W: (out, in)   b, d: (out,)

    The copies of b are float32 on 16-bit bases. Two such adapters in one host cannot be active together.
    """

    def __init__(self, config: BitFitConfig, site: Site):
        names = biases(site.module)
        if not names:
            raise TargetError(
                f"target_modules: {site.path!r}, a {original_class(site.module).__name__}, has no bias to train. Leave "
                "it out; without target_modules, BitFit takes every module that has one.",
                "target_modules",
                site.path,
            )
        super().__init__(config, site, names, site.bank)
        for p in self.copies.values():
            p.data = p.data.to(site.dtype)

    def forward(self, base: Callable[..., Any], *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        own: dict[str, Any] = dict(host._parameters)
        for name in self.copies:
            own[name] = self.copies[name].to(own[name].dtype)
        return original_class(host).forward(stand_in(host, _parameters=own), *args, **kwargs)
