"""Trainable tokens as a method of its own: rows of the input embedding trained in full, the rest frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from inlay.checks import check_bool, check_indices
from inlay.config import AdapterConfig
from inlay.core.host import Site, end_of, kind_of
from inlay.errors import ConfigError
from inlay.methods.tokens import TokenRows
from inlay.registry import adapter


@dataclass
class TrainableTokensConfig(AdapterConfig, peft_type="TRAINABLE_TOKENS"):
    r"""W'[i_k] = T[k], W'[j] = W[j] elsewhere, in an embedding and in whatever is tied to it, an output head mostly.

    W: (num, dim)   i: (n,) token indices   T: (n, dim)

    Args:
        token_indices: i.
        target_modules: which embeddings; by default the model's input embedding.
        init_weights: T starts as W[i]; False: normal, so that the adapter is not the identity (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed, or an index is not one of the embedding's.
    """

    token_indices: list[int] = field(default_factory=list)
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_indices is None or isinstance(self.token_indices, int):
            raise ConfigError.of("token_indices", self.token_indices, "a list of token indices")
        self.token_indices = check_indices("token_indices", self.token_indices)
        check_bool("init_weights", self.init_weights)

    @property
    def trainable_token_indices(self) -> list[int]:
        """LoRA's name for them: the embedding they are of is not saved along."""
        return self.token_indices

    def targets_in(self, modules: Mapping[str, Any], model_type: str | None) -> Sequence[str] | str | None:
        embedding = end_of(modules[""], "input")
        return [path for path, module in modules.items() if module is embedding] or None

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        owners = [modules[path].weight for path in targets if kind_of(modules[path]) == "embedding"]
        for path, module in modules.items():
            weight = module._parameters.get("weight")
            if path not in targets and any(weight is own for own in owners):
                yield path, TrainableTokens

    def bank(self, sites: Sequence[Any]) -> dict[int, TokenRows]:
        """id of an embedding's weight -> the adapter whose T the others on this weight share."""
        return {}


@adapter(TrainableTokensConfig, "embedding", "linear")
class TrainableTokens(TokenRows):
    r"""W' = W but for the rows W'[i_k] = T[k].   W: (num, dim)   i: (n,)   T: (n, dim), starts as W[i]

    On a linear layer, an output head, the rows are those of its weight. Layers on one weight share one T, which is
    written for each of them, as peft does; a head that is targeted alone leaves the embedding as it is.
    """

    field = "token_indices"

    def __init__(self, config: TrainableTokensConfig, site: Site):
        made, weight = site.bank, id(site.module.weight)
        super().__init__(config, site, config.token_indices, tied_to=made.get(weight))
        made.setdefault(weight, self)
        self.init = config.init_weights

    def reset(self, host: Any) -> None:
        if self.init:
            super().reset(host)
        elif self.owner:
            nn.init.normal_(self.rows)

    def tensors(self) -> dict[str, Tensor]:
        return {"trainable_tokens_delta": self.rows}
