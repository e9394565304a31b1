"""Prefix tuning, and P-Tuning v2: keys and values of virtual tokens in every layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay import registry
from inlay.checks import check_bool, check_choice, check_number
from inlay.core.classes import original_class
from inlay.core.host import Site, call_names, is_encoder_decoder
from inlay.errors import ConfigError, StateError, TargetError
from inlay.prompt.config import PromptLearningConfig, backbone, check_size, dimensions
from inlay.prompt.layout import Layout
from inlay.prompt.tokens import Prompted, cached_length


@dataclass
class PrefixTuningConfig(PromptLearningConfig, peft_type="PREFIX_TUNING"):
    r"""Attention over [K_p; K] and [V_p; V] in every layer.   Li & Liang 2021, arXiv 2101.00190.

    K_p, V_p: (P, d) in each of L layers, together the rows of E: (P, 2 L d). `prefix_projection` computes them as
    W_2 tanh(W_1 E + b_1) + b_2 from E: (P, d); without it this is P-Tuning v2 (Liu et al. 2022, arXiv 2110.07602).

    In an encoder-decoder model the prefix is in the decoder's self-attention, as in peft (the paper has one in the
    encoder and the cross-attention too). There peft gives layer i the vectors 4 i and 4 i + 1, counted modulo 2 L, so
    that half of E is not used; so does Inlay, whose files are the same. `num_transformer_submodules=1` gives each layer
    its own, 2 i and 2 i + 1.

    The file holds K_p and V_p; the projection is saved beside an adapter that is being trained, so that it can resume.

    Args:
        prefix_projection: compute the prefix by a two-layer network.
        encoder_hidden_size: its hidden size; d if None.
        init_weights: "zero" starts with K_p = V_p = 0; None with E from N(0, 1).
        prefix_dropout: probability of zeroing an entry of the prefix in training; P-Tuning v2 has 0.1, peft none.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: str | None = None
    prefix_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("prefix_projection", self.prefix_projection)
        check_size("encoder_hidden_size", self.encoder_hidden_size, optional=True)
        check_choice("init_weights", self.init_weights, (None, "zero"))
        if self.prefix_dropout is not None:
            check_number("prefix_dropout", self.prefix_dropout, 0.0, 1.0)

    def measure(self, model: nn.Module) -> None:
        sizes = dimensions(model)
        heads, dim = sizes["key_heads"], sizes["head_dim"]
        if self.num_attention_heads is None:
            self.num_attention_heads = heads
        self.take("token_dim", heads * dim if heads and dim else None)
        self.take("num_layers", sizes["num_layers"])
        super().measure(model)
        if self.token_dim % self.num_attention_heads:  # type: ignore[operator]
            raise ConfigError.of("token_dim", self.token_dim, f"a multiple of {self.num_attention_heads} heads")
        self.encoder_hidden_size = self.encoder_hidden_size or self.token_dim

    def places(self, model: Any) -> Iterable[tuple[Any, Callable[..., Any]]]:
        host = model.get_decoder() if is_encoder_decoder(model) else backbone(model)
        if "past_key_values" not in call_names(host):
            raise TargetError(
                f"{original_class(host).__name__} takes no past keys and values, which a prefix is: use prompt tuning, "
                "P-tuning, or a method that sits in layers, such as LoRA.",
                "peft_type",
                str(self.peft_type),
            )
        make: Any = registry.adapter_for(self, "cache")
        yield host, functools.partial(make, model=model)


@registry.adapter(PrefixTuningConfig, "cache")
class Prefix(Prompted):
    r"""y = softmax(q [K_p; W_k x]^T) [V_p; W_v x] in every layer.   K_p: (P, d)   V_p: (P, d)   E: (P, 2 L d)

    An adapter that is loaded to be used, not trained, has the prefix itself in the place of E, and no projection.
    """

    def __init__(self, config: PrefixTuningConfig, site: Site, model: Any):
        super().__init__(config, site)
        self.fill: Any = getattr(registry.glue_for(model), "fill_cache", None)
        if self.fill is None:
            raise TargetError(f"Prefix tuning needs a model of transformers, got a {type(model).__name__}.")
        d, layers = int(config.token_dim or 0), int(config.num_layers or 0)
        stride = 2 * (config.num_transformer_submodules or 1)
        self.first = [i * stride % (2 * layers) for i in range(layers)]
        self.shape = (self.count, 2 * layers, int(config.num_attention_heads or 1), -1)
        self.zero, self.dropout = config.init_weights == "zero", config.prefix_dropout or 0.0
        projected = config.prefix_projection and not config.inference_mode
        if projected:  # made where it computes: its modules initialise themselves
            site = replace(site, device=next(site.module.parameters()).device)
        self.embedding = self.parameter(site, self.count, d if projected else 2 * layers * d)
        nn.init.normal_(self.embedding)  # here, as the projection draws its start when made: E is first, as in peft
        self.projection = None
        if projected:
            h, at = int(config.encoder_hidden_size or 0), {"device": site.device, "dtype": site.dtype}
            net = nn.Sequential(nn.Linear(d, h, **at), nn.Tanh(), nn.Linear(h, 2 * layers * d, **at))  # type: ignore[arg-type]
            self.projection = net.requires_grad_(False)

    def reset(self, host: nn.Module) -> None:
        if self.zero:
            last = [self.embedding] if self.projection is None else list(self.projection[-1].parameters())
            for p in last:
                nn.init.zeros_(p)

    def prefix(self) -> Tensor:
        """E or its projection, (P, 2 L d)."""
        made: Tensor = self.embedding if self.projection is None else self.projection(self.embedding)
        return made

    def forward(self, base: Callable[..., Any], *args: Any, host: Any, **kwargs: Any) -> Any:
        call = self.named(args, kwargs)
        layout = Layout(self.count, call.get("attention_mask"), moves=False)
        cache, positions = call.get("past_key_values"), call.get("position_ids")
        if positions is not None:
            call["position_ids"] = positions + self.count
        elif self.causal and "position_ids" in self.names and (counted := layout.positions) is not None:
            call["position_ids"] = counted[:, -_inputs(call).shape[1] :]
        if layout.mask is not None:
            call["attention_mask"] = layout.mask
        if not cached_length(cache):
            _check_no_checkpointing(host)
            call["past_key_values"] = self.fill(cache, host, self.layers(_inputs(call).shape[0], _dtype(host, call)))
        outputs = base(**call)
        if cache is None and not _asks_for_cache(host, call) and not isinstance(outputs, tuple):
            outputs.past_key_values = None  # `generate` would pass it on, with all the tokens again
        return outputs

    def layers(self, rows: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Each layer's (K_p, V_p), both (rows, heads, P, d / heads)."""
        prefix = F.dropout(self.prefix(), self.dropout) if self.training and self.dropout else self.prefix()
        parts = prefix.to(dtype).reshape(self.shape).permute(1, 2, 0, 3)  # (2 L, heads, P, d / heads)
        batch = parts.unsqueeze(1).expand(-1, rows, -1, -1, -1)
        return [(batch[i], batch[i + 1]) for i in self.first]

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.prefix()}

    def training_state(self) -> dict[str, Tensor]:
        return {} if self.projection is None else dict(self.state_dict(keep_vars=True))


def _inputs(call: dict[str, Any]) -> Tensor:
    """What is embedded, or was: its first two dimensions are (b, L)."""
    found: Tensor = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    return found


def _dtype(host: Any, call: dict[str, Any]) -> torch.dtype:
    """The dtype the host computes in: under autocast keys and values have autocast's."""
    device = _inputs(call).device.type
    dtype: torch.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else host.dtype
    return dtype


def _asks_for_cache(host: Any, call: dict[str, Any]) -> bool:
    """Whether the caller wants the keys and values back."""
    asked = call.get("use_cache")
    return bool(getattr(host.config, "use_cache", False) if asked is None else asked)


def _check_no_checkpointing(host: Any) -> None:
    """Raises StateError if gradient checkpointing would drop the prefix: transformers then passes no cache on."""
    if host.training and any(getattr(m, "gradient_checkpointing", False) for m in host.modules()):
        raise StateError(
            "A prefix is passed to the layers as cached keys and values, which transformers drops under gradient "
            "checkpointing: call model.gradient_checkpointing_disable() to train it."
        )
