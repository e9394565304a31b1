"""Virtual tokens as input embeddings: what prompt tuning, P-tuning and multitask prompt tuning have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.core.adapter import Adapter
from inlay.core.classes import original_class
from inlay.core.host import Site, call_names, end_of
from inlay.errors import StateError, TargetError
from inlay.prompt.config import PromptLearningConfig
from inlay.prompt.layout import Layout


class Prompted(Adapter):
    """Base of the adapters that sit around a whole model, or its encoder or decoder, and change what goes into it."""

    mergeable: ClassVar[bool] = False
    mixable: ClassVar[bool] = False

    def __init__(self, config: PromptLearningConfig, site: Site):
        super().__init__(config, site)
        self.count: int = config.num_virtual_tokens  # type: ignore[assignment]  # checked by the config
        self.names = call_names(site.module)
        self.causal = is_causal(site.module)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the host, by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}

    def tensors(self) -> dict[str, Tensor]:
        return {}


class VirtualTokens(Prompted):
    r"""y = f([p_1 ... p_P, e(x_1) ... e(x_L)]; W).   p: (P, d)   e: the model's embedding   f: all that follows it

    Labels, masks, positions and token types are extended along. A cached prompt is not put in again. Where the outputs
    are per token, those at virtual tokens are dropped, except from a causal LM's logits: peft returns (b, P + L, V)
    there, which TRL relies on, and the last virtual token predicts the first real one.

    Args:
        keeps: leave the virtual tokens' outputs in.
    """

    def __init__(self, config: PromptLearningConfig, site: Site, keeps: bool):
        super().__init__(config, site)
        self.keeps = keeps

    def prompt(self, rows: int, host: Any) -> Tensor:
        """(1 or rows, P, d), the virtual tokens' embeddings."""
        raise NotImplementedError

    def forward(self, base: Callable[..., Any], *args: Any, host: Any, **kwargs: Any) -> Any:
        call = self.named(args, kwargs)
        positions = call.get("position_ids")
        if cached_length(call.get("past_key_values")):  # a later step of generation
            mask = Layout(self.count, call.get("attention_mask"), moves=False).mask
            call.update({} if mask is None else {"attention_mask": mask})
            call.update({} if positions is None else {"position_ids": positions + self.count})
            return base(**call)
        ids, embeds = call.pop("input_ids", None), call.pop("inputs_embeds", None)
        if embeds is None:
            embeds = host.get_input_embeddings()(ids)
        layout = Layout(self.count, call.get("attention_mask"), moves=not self.causal)
        call["inputs_embeds"] = layout.before(embeds, self.prompt(embeds.shape[0], host))
        if layout.mask is not None:
            call["attention_mask"] = layout.mask
        if positions is not None:
            first = torch.arange(self.count, device=positions.device)
            call["position_ids"] = layout.before(positions + self.count, first)
        elif self.causal and "position_ids" in self.names and layout.mask is not None:
            call["position_ids"] = layout.positions
        for name, value in (("token_type_ids", 0), ("labels", -100)):
            if call.get(name) is not None:
                call[name] = layout.before(call[name], call[name].new_tensor(value))
        outputs = base(**call)
        return outputs if self.keeps else _taken(outputs, layout)


class PromptedMask(Prompted):
    """In a decoder: the mask over the encoder's outputs, extended by the P virtual tokens that are among them."""

    def forward(self, base: Callable[..., Any], *args: Any, host: Any, **kwargs: Any) -> Any:
        call = self.named(args, kwargs)
        mask = call.get("encoder_attention_mask")
        if mask is not None:
            call["encoder_attention_mask"] = Layout(self.count, mask, moves=True).mask
        return base(**call)


def is_causal(module: nn.Module) -> bool:
    """Whether tokens see only what is before them: some attention in `module` says so, or none says anything."""
    said = {flag for m in module.modules() if isinstance(flag := getattr(m, "is_causal", None), bool)}
    return True in said or (not said and "past_key_values" in call_names(module))


def cached_length(cache: Any) -> int:
    """How many tokens a key-value cache holds. Raises StateError for one of a fixed size."""
    if getattr(cache, "is_compileable", False):
        raise StateError(
            "A static cache is made for the given tokens and has no room for virtual ones: generate with the default "
            "(dynamic) cache."
        )
    return 0 if cache is None else int(cache.get_seq_length())


def check_embeds(host: Any, config: PromptLearningConfig) -> int:
    """The size of the embeddings that `host` takes in the place of tokens. Raises TargetError if it takes none."""
    table = end_of(host, "input") if "inputs_embeds" in call_names(host) else None
    if not isinstance(table, nn.Embedding):
        raise TargetError(
            f"{original_class(host).__name__} has no token embeddings that virtual tokens could be put before: "
            f"{config.peft_type} is for models of text. Use a method that sits in layers, such as LoRA.",
            "peft_type",
            str(config.peft_type),
        )
    return table.embedding_dim


def _taken(outputs: Any, layout: Layout) -> Any:
    """A backbone's outputs without those at virtual tokens."""
    if isinstance(outputs, tuple):
        return layout.take(outputs[0]), *outputs[1:]
    outputs.last_hidden_state = layout.take(outputs.last_hidden_state)
    if getattr(outputs, "hidden_states", None) is not None:
        outputs.hidden_states = tuple(layout.take(h) for h in outputs.hidden_states)
    return outputs
