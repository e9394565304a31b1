"""P-tuning: virtual tokens made by a small network, which is trained with them."""

from __future__ import annotations

import enum
import itertools
import warnings
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from inlay.checks import check_choice, check_number
from inlay.core.host import Site
from inlay.errors import InlayWarning
from inlay.prompt.config import PromptLearningConfig, check_size
from inlay.prompt.tokens import VirtualTokens
from inlay.registry import adapter


class PromptEncoderReparameterizationType(str, enum.Enum):
    """The network that makes the virtual tokens."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass
class PromptEncoderConfig(PromptLearningConfig, peft_type="P_TUNING"):
    r"""y = f([p_1 ... p_P, e(x)]) with p = g(E).   Liu et al. 2021, arXiv 2103.10385.

    E: (P, d)   g: an MLP, or a two-way LSTM and an MLP; h: `encoder_hidden_size`

    The file holds p, as peft's does; E and g are saved beside an adapter that is being trained, so that it can resume.

    Args:
        encoder_reparameterization_type: "MLP": linear layers d -> h -> h -> d with ReLU between. "LSTM": d -> 2 h, then
            linear layers 2 h -> 2 h -> d with ReLU between.
        encoder_hidden_size: h; d if None.
        encoder_num_layers: of the LSTM.
        encoder_dropout: between the LSTM's layers.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    encoder_reparameterization_type: str = PromptEncoderReparameterizationType.MLP
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.encoder_reparameterization_type
        names = [t.value for t in PromptEncoderReparameterizationType]
        check_choice("encoder_reparameterization_type", getattr(kind, "value", kind), names)
        self.encoder_reparameterization_type = PromptEncoderReparameterizationType(kind)
        check_size("encoder_hidden_size", self.encoder_hidden_size, optional=True)
        check_size("encoder_num_layers", self.encoder_num_layers)
        check_number("encoder_dropout", self.encoder_dropout, 0.0, 1.0)
        if kind == "MLP" and self.encoder_num_layers != 2:
            warnings.warn("encoder_num_layers is for the LSTM: the MLP has three.", InlayWarning, stacklevel=3)

    def measure(self, model: nn.Module) -> None:
        super().measure(model)
        self.encoder_hidden_size = self.encoder_hidden_size or self.token_dim


@adapter(PromptEncoderConfig, "prompt")
class PromptEncoder(VirtualTokens):
    r"""y = f([p_1 ... p_P, e(x)]; W) with p = g(E).   E: (P, d)   p: (P, d)

    An adapter that is loaded to be used, not trained, has p itself in the place of E, and no g.
    """

    def __init__(self, config: PromptEncoderConfig, site: Site, keeps: bool):
        super().__init__(config, site, keeps)
        trained = not config.inference_mode
        if trained:  # torch's own modules are not made on meta and filled later: an LSTM keeps its weights twice
            site = replace(site, device=next(site.module.parameters()).device)
        self.embedding = self.parameter(site, config.rows, config.token_dim)  # type: ignore[arg-type]
        nn.init.normal_(self.embedding)  # here, as g draws its start when it is made: E is first, as in peft
        self.encoder = _encoder(config, site).requires_grad_(False) if trained else None

    def embeddings(self) -> Tensor:
        """g(E), (P * submodules, d)."""
        if self.encoder is None:
            return self.embedding
        made: Tensor = self.encoder(self.embedding.unsqueeze(0)).squeeze(0)
        return made

    def prompt(self, rows: int, host: Any) -> Tensor:
        return self.embeddings()[: self.count].unsqueeze(0)

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.embeddings()}

    def training_state(self) -> dict[str, Tensor]:
        return {} if self.encoder is None else dict(self.state_dict(keep_vars=True))


class _TwoWay(nn.LSTM):
    """A bidirectional LSTM that returns its outputs only."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        outputs: Tensor = super().forward(x)[0]
        return outputs


def _encoder(config: PromptEncoderConfig, site: Site) -> nn.Module:
    d, h = int(config.token_dim or 0), int(config.encoder_hidden_size or 0)
    at: dict[str, Any] = {"device": site.device, "dtype": site.dtype}
    if config.encoder_reparameterization_type == "MLP":
        sizes, first = [d, h, h, d], list[nn.Module]()
    else:
        lstm = _TwoWay(
            d, h, config.encoder_num_layers, dropout=config.encoder_dropout, bidirectional=True, batch_first=True, **at
        )
        sizes, first = [2 * h, 2 * h, d], [lstm]
    layers = [*first, nn.Linear(sizes[0], sizes[1], **at)]
    for a, b in itertools.pairwise(sizes[1:]):
        layers += [nn.ReLU(), nn.Linear(a, b, **at)]
    return nn.Sequential(*layers)
