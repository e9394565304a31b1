"""LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199): y = Attn(x) + W_o (g softmax(q K^T s) V), (K, V) of a prompt.

The prompt's part is computed by the attention module itself, called twice more with a stand-in for its cache of keys
and values: once on the prompt, for K and V as this architecture makes them (grouped heads, norms of keys, fused
projections), and once on x, with the cache answering K and V whatever keys come. So q is the layer's own, and no
architecture's attention is written here a second time. The price is a second and third projection of q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inlay.checks import check_choice, check_int
from inlay.config import PeftConfig
from inlay.core.adapted import stand_in
from inlay.core.adapter import Adapter
from inlay.core.classes import original_class
from inlay.core.host import Site, call_names
from inlay.core.targets import matches_name
from inlay.errors import ConfigError, TargetError, did_you_mean
from inlay.registry import adapter


class Family(NamedTuple):
    """Architectures whose attention is called alike.

    Attributes:
        attention: the attention's name in a layer.
        out: the name of its output projection W_o.
        projects: whether the prompt's part goes through W_o. Not for GPT-2, for which peft leaves that out.
    """

    attention: str
    out: str
    projects: bool = True


_LLAMAS = """
    llama mistral mixtral ministral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text glm glm4 stablelm phi3
    cohere cohere2 olmo olmo2 olmo3 granite starcoder2 smollm3 nemotron helium seed_oss
"""
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(_LLAMAS.split(), Family("self_attn", "o_proj")),
    **dict.fromkeys(["phi", "persimmon"], Family("self_attn", "dense")),
    "gpt_neox": Family("attention", "dense"),
    "opt": Family("self_attn", "out_proj"),
    "gptj": Family("attn", "out_proj"),
    "gpt2": Family("attn", "c_proj", projects=False),
}
"""Model type -> how its attention is called. Each is tested; bloom's, e.g., adds the residual inside and is not one."""

_CACHES = ("past_key_values", "layer_past")  # what the cache is called in an attention's signature


@dataclass
class AdaptionPromptConfig(PeftConfig, peft_type="ADAPTION_PROMPT"):
    r"""y = Attn(x) + W_o (g softmax(q K^T s) V) in the attention of the top layers; K = W_k P, V = W_v P.

    P: (1, len, dim) the layer's prompt   g: (1), starts at 0   q: the layer's queries of x   s: its scale of scores

    Args:
        target_modules: the attention's name in a layer, `"self_attn"`; None takes the model type's.
        adapter_len: len, tokens of the prompt. Has to be given.
        adapter_layers: number of layers that get one, counted from the top. Has to be given.
        gate: None: one scalar per layer, as peft has it; `"tanh_per_head"`: tanh(g) with one g per head, as the
            paper's code has it (peft cannot read such files).

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    target_modules: str | None = None
    adapter_len: int | None = None
    adapter_layers: int | None = None
    gate: str | None = None

    is_adaption_prompt = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_modules is not None and not (isinstance(self.target_modules, str) and self.target_modules):
            raise ConfigError.of("target_modules", self.target_modules, "one name of an attention module, or None")
        for name in ("adapter_len", "adapter_layers"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        check_choice("gate", self.gate, (None, "tanh_per_head"))

    def default_targets(self, model_type: str | None) -> str | None:
        """The attention's name in models of a type; None if the method does not know them."""
        family = FAMILIES.get(model_type or "")
        return None if family is None else family.attention

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        for name in ("adapter_len", "adapter_layers"):
            check_int(name, getattr(self, name), 1)
        if self.target_modules is None:  # from here on the config says what None stands for
            model_type = getattr(getattr(modules[""], "config", None), "model_type", None)
            self.target_modules = self.default_targets(model_type)
            if self.target_modules is None:
                raise TargetError(f"Models of type {model_type!r} have no attention {_KNOWN}")
        named = [path for path in modules if path and matches_name(path, self.target_modules)]
        found = [path for path in named if family_of(modules[path]) is not None]
        if not named:
            hint = did_you_mean(self.target_modules, {path.rsplit(".", 1)[-1] for path in modules} - {""})
            raise TargetError.of("target_modules", self.target_modules, "the name of an attention module", hint.strip())
        if not found:
            kind = original_class(modules[named[0]]).__name__
            raise TargetError(
                f"target_modules={self.target_modules!r}: {named[0]!r} is a {kind}, which is no attention {_KNOWN}",
                "target_modules",
                self.target_modules,
            )
        if self.adapter_layers > len(found):  # type: ignore[operator]
            raise ConfigError.of("adapter_layers", self.adapter_layers, f"at most {len(found)}, the model's layers")
        return [(path, AdaptionPrompt) for path in found[-self.adapter_layers :]]  # type: ignore[operator]


_KNOWN = (
    "that ADAPTION_PROMPT knows how to call. It knows that of the model types "
    f"{', '.join(sorted(FAMILIES))}: take one of these, or another method."
)


def family_of(host: nn.Module) -> Family | None:
    """The family of an attention module; None for other modules, and attention of unknown model types."""
    family = FAMILIES.get(getattr(getattr(host, "config", None), "model_type", None) or "")
    if family is None or family.out not in host._modules or not set(_CACHES) & set(call_names(host)):
        return None
    return family


class Remembered:
    """Stands in for a cache of keys and values: the first ones it is given, it answers to all later ones."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to, (batch, heads, tokens, dim of a head) each."""
        if self.kept is None:
            self.kept = key, value
        k, v = self.kept
        return k.expand(key.shape[0], -1, -1, -1), v.expand(key.shape[0], -1, -1, -1)


@adapter(AdaptionPromptConfig, "module")
class AdaptionPrompt(Adapter):
    r"""y = Attn(x) + W_o (g softmax(q K^T s) V), K = W_k P, V = W_v P.   Zhang et al. 2023, arXiv 2303.16199.

    P: (1, len, dim), starts normal   g: (1) or (heads), starts at 0   q: (batch, heads, n, d) the layer's queries of x
    K, V: (1, heads, len, d)   W_k, W_v, W_o: (out, in) the layer's projections   s: the layer's scale of scores

    q has its rotary position, K none: every token sees the prompt from the same place. W_o's bias is not added a second
    time (peft adds it, so that a new adapter is not the identity on a layer that has one), and GPT-2's W_o is left
    out as in peft. The prompt's part is never dropped out.
    """

    mergeable = False
    mixable = False

    def __init__(self, config: AdaptionPromptConfig, site: Site):
        super().__init__(config, site)
        host: Any = site.module
        family = family_of(host)
        assert family is not None, "the config takes no other hosts"
        self.out, self.projects = family.out, family.projects
        self.takes = call_names(host)
        self.cache = next(name for name in _CACHES if name in self.takes)
        self.heads = int(host.config.num_attention_heads) if config.gate == "tanh_per_head" else None
        self.adaption_prompt = self.parameter(site, 1, int(config.adapter_len or 0), int(host.config.hidden_size))
        self.adaption_gate = self.parameter(site, self.heads or 1)

    def reset(self, host: nn.Module) -> None:
        nn.init.normal_(self.adaption_prompt)
        nn.init.zeros_(self.adaption_gate)

    def forward(self, base: Callable[..., Any], *args: Any, host: Any, **kwargs: Any) -> Any:
        y, *rest = base(*args, **kwargs)
        given = {**dict(zip(self.takes, args, strict=False)), **kwargs}
        z = self.gated(self.attended(host, given["hidden_states"], given))
        if self.projects:
            out: Any = getattr(host, self.out)
            u, z = z, out(z)
            if getattr(out, "bias", None) is not None:  # whatever the layer is, its value at 0 is its bias
                z = z - out(torch.zeros_like(u[:, :1]))
        return (y + z.to(y.dtype), *rest)

    def attended(self, host: Any, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        """softmax(q K^T s) V: (batch, n, heads * d), with q of `x` at the positions that are `given`."""
        plain = stand_in(host, training=False, is_causal=False)
        for name, child in plain._modules.items():
            if name == self.out or isinstance(child, nn.Dropout):
                plain._modules[name] = _IDENTITY
        attention, memory = original_class(host).forward, Remembered()
        prompt = self.adaption_prompt.to(x.dtype)
        if host.active.rows is not None:  # adapters inside this host may count rows
            prompt = prompt.repeat(x.shape[0], 1, 1)
        for tokens, positions in (prompt, self.origin(given, x.device)), (x, given):
            call = {"hidden_states": tokens, "attention_mask": None, self.cache: memory}
            call.update({name: positions[name] for name in _POSITIONS if name in self.takes and name in positions})
            z: Tensor = attention(plain, **call)[0]
        return z

    def origin(self, given: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """The positions of the prompt's tokens: all 0, where a rotary embedding turns by no angle."""
        n = self.adaption_prompt.shape[1]
        found: dict[str, Any] = {"position_ids": torch.zeros(1, n, dtype=torch.long, device=device)}
        if given.get("position_embeddings") is not None:
            cos, sin = given["position_embeddings"]
            found["position_embeddings"] = cos.new_ones(1, n, cos.shape[-1]), sin.new_zeros(1, n, sin.shape[-1])
        return found

    def gated(self, z: Tensor) -> Tensor:
        """g z, of the whole layer or head by head."""
        if self.heads is None:
            return self.adaption_gate.to(z.dtype) * z
        g = self.adaption_gate.tanh().to(z.dtype)
        by_head: Tensor = z.view(*z.shape[:-1], self.heads, -1) * g.unsqueeze(-1)
        return by_head.flatten(-2)

    def tensors(self) -> dict[str, Tensor]:
        return {"adaption_prompt": self.adaption_prompt, "adaption_gate": self.adaption_gate}


_IDENTITY = nn.Identity()
_POSITIONS = ("position_embeddings", "position_ids")
