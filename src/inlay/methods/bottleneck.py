"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): y = h + s (U act(D h + c) + e), h = W x + b."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from inlay.checks import check_bool, check_choice, check_int, check_number
from inlay.config import AdapterConfig
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedModule
from inlay.core.host import Site, kind_of
from inlay.errors import ConfigError, TargetError
from inlay.registry import adapter

STYLES = ("houlsby", "pfeiffer", "parallel")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "swish": F.silu,
    "silu": F.silu,
    "tanh": F.tanh,
    "leaky_relu": F.leaky_relu,
}

# Model types -> regular expressions for the ends of paths: the attention's output projection, the feed-forward block's,
# and the block as one module, where there is one. Blocks of routed experts are one module throughout.
_BLOCKS: list[tuple[str, str, str, str]] = [
    (
        "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text stablelm glm glm4",
        r"self_attn\.o_proj",
        r"mlp\.down_proj",
        "mlp",
    ),
    ("mixtral", r"self_attn\.o_proj", "mlp|block_sparse_moe", "mlp|block_sparse_moe"),
    (
        "llama4 llama4_text",  # the language model's, not the vision model's
        r"(^|language_model\.)(model\.)?layers\.\d+\.self_attn\.o_proj",
        "feed_forward",
        "feed_forward",
    ),
    ("opt bart mbart marian whisper", r"(self|encoder)_attn\.out_proj", "fc2", ""),
    ("clip clip_text_model clip_vision_model", r"self_attn\.out_proj", r"mlp\.fc2", "mlp"),
    (
        "bert roberta xlm-roberta electra layoutlm deberta deberta-v2",
        r"\w*attention\.output\.dense",
        r"\d+\.output\.dense",
        "",
    ),
    (
        "vit swin segformer",  # today's names, and those of before
        r"attention\.(o_proj|output\.dense)",
        r"mlp\.(fc2|dense2)|\d+\.output\.dense",
        "mlp",
    ),
    ("t5 mt5 umt5", r"(SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo", "DenseReluDense"),
    ("bloom chatglm gpt_neox falcon RefinedWeb RefinedWebModel", r"\w*attention\.dense", r"mlp\.dense_4h_to_h", "mlp"),
    ("gpt2 gpt_bigcode", r"\w*attn\w*\.c_proj|crossattention\.c_proj", r"mlp\.c_proj", "mlp"),
    ("gpt_neo", r"attention\.out_proj", r"mlp\.c_proj", "mlp"),
    ("gptj codegen", r"attn\.out_proj", r"mlp\.fc_out", "mlp"),
    ("phi", r"self_attn\.dense", r"mlp\.fc2", "mlp"),
    ("mpt", r"attn\.out_proj", r"ffn\.down_proj", "ffn"),
    ("UNet2DConditionModel", r"attn[12]\.to_out\.0", r"ff\.net\.2", "ff"),
    (
        "blip-2",  # the query transformer, and a language model of OPT's or T5's kind
        r"(qformer|language_model)\..*\.(\w*attention\.output\.dense|(self|encoder)_attn\.out_proj|\w+Attention\.o)",
        r"(qformer|language_model)\..*\.(\d+\.output(_query)?\.dense|fc2|wo)",
        "",
    ),
]
_BLOCK_OF = {kind: ends for kinds, *ends in _BLOCKS for kind in kinds.split()}


@dataclass
class BottleneckConfig(AdapterConfig, peft_type="BOTTLENECK"):
    r"""y = h + s (U act(D h + c) + e) after a sublayer's output projection, h = W x + b. Not in peft.

    D: (m, d)   c: (m,)   U: (d, m)   e: (d,)   d: width of the model   m: size of the bottleneck

    What `adapters` calls `DoubleSeqBnConfig`, `SeqBnConfig` and `ParBnConfig` are the three styles. Its files are not
    read, and its `SeqBnConfig` differs: it puts the model's own LayerNorm before the adapter too.

    Args:
        style: where adapters go without `target_modules`. "houlsby": after the output projections of attention and
            feed-forward block, before residual and LayerNorm (1902.00751). "pfeiffer": after the feed-forward block's
            only (2005.00247). "parallel": beside the feed-forward block f, y = f(x) + s (U act(D x + c) + e) (He et al.
            2022, 2110.04366), in models in which that block is one module. Targets that are given may be any modules.
        bottleneck_size: m; None: d / `reduction_factor`, rounded down, at least 1. Houlsby takes 8 to 256.
        reduction_factor: d / m, if `bottleneck_size` is None.
        activation: one of relu, gelu, gelu_new, swish (silu), tanh, leaky_relu.
        scaling: s. He et al. take 4 for "parallel".
        dropout: probability of zeroing an output of the adapter in training.
        init_weights: True: U is zero, so that a new adapter changes nothing; D is Kaiming-uniform. "houlsby": as in the
            paper, both normal with deviation 1e-3, cut off at two deviations, nearly the identity. False: both
            Kaiming-uniform, for tests. c and e start at zero.
        train_layer_norm: train the model's normalisation layers along, as private copies, as Houlsby does.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    style: str = "houlsby"
    bottleneck_size: int | None = None
    reduction_factor: float = 16
    activation: str = "gelu"
    scaling: float = 1.0
    dropout: float = 0.0
    init_weights: bool | str = True
    train_layer_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("style", self.style, STYLES)
        if self.bottleneck_size is not None:
            check_int("bottleneck_size", self.bottleneck_size, 1)
        check_number("reduction_factor", self.reduction_factor, 1 / 64)
        check_choice("activation", self.activation, list(ACTIVATIONS))
        check_number("scaling", self.scaling)
        check_number("dropout", self.dropout, 0.0, 1.0)
        check_choice("init_weights", self.init_weights, (True, False, "houlsby"))
        check_bool("train_layer_norm", self.train_layer_norm)

    @property
    def variant(self) -> str:
        return "parallel" if self.style == "parallel" else ""

    def size(self, width: int) -> int:
        """The bottleneck m for a width d."""
        return self.bottleneck_size or max(1, int(width / self.reduction_factor))

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        if model_type not in _BLOCK_OF:
            return None
        attention, output, block = _BLOCK_OF[model_type]
        if self.style == "parallel":
            if not block and self.target_modules is None:
                raise ConfigError.of(
                    "style",
                    self.style,
                    "'houlsby' or 'pfeiffer' for this model",
                    f"The feed-forward block of {model_type} is no module of its own, that one could go beside.",
                )
            return rf"(.*\.)?({block})"
        return rf"(.*\.)?({output})" if self.style == "pfeiffer" else rf"(.*\.)?({attention}|{output})"

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        if self.train_layer_norm:
            norms = [path for path, module in modules.items() if path and is_norm(module)]
            if not norms:
                raise ConfigError.of(
                    "train_layer_norm", True, "False for this model", "It has no normalisation layer with a weight."
                )
            yield from ((path, TrainedModule) for path in norms)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer (`LayerNorm`, `LlamaRMSNorm`, ...) with a weight of its own."""
    return "norm" in type(module).__name__.lower() and module._parameters.get("weight") is not None


def widths(site: Site) -> tuple[int, int]:
    """Width of what a host takes and returns. A sublayer returns what it takes: what its first layer takes."""
    if site.kind == "linear":
        return site.in_features, site.out_features
    for module in site.module.modules():
        if kind_of(module) == "linear":
            width = dataclasses.replace(site, module=module, kind="linear").in_features
            return width, width
    first = next((p for p in site.module.parameters() if p.dim()), None)
    if first is None:
        raise TargetError(
            f"target_modules: {site.path!r} has no parameters, which would tell how wide its output is. Take another.",
            "target_modules",
            site.path,
        )
    return first.shape[-1], first.shape[-1]


class Bottleneck(Adapter):
    """D, c, U and e, and what goes through them."""

    mergeable = False

    def __init__(self, config: BottleneckConfig, site: Site, width_in: int, width_out: int):
        super().__init__(config, site)
        m = config.size(width_out)
        self.activation, self.scaling, self.dropout = config.activation, config.scaling, config.dropout
        self.init = config.init_weights
        self.down, self.down_bias = self.parameter(site, m, width_in), self.parameter(site, m)
        self.up, self.up_bias = self.parameter(site, width_out, m), self.parameter(site, width_out)

    def reset(self, host: nn.Module) -> None:
        if self.init == "houlsby":
            for p in (self.down, self.up):
                nn.init.trunc_normal_(p, std=1e-3, a=-2e-3, b=2e-3)
        else:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
            if self.init:
                nn.init.zeros_(self.up)
            else:
                nn.init.kaiming_uniform_(self.up, a=math.sqrt(5))
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)

    def update(self, h: Tensor) -> Tensor:
        """s (U act(D h + c) + e), in h's dtype."""
        narrow = ACTIVATIONS[self.activation](F.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype)))
        wide = F.linear(narrow, self.up.to(narrow.dtype), self.up_bias.to(narrow.dtype))
        if self.dropout and self.training:
            wide = F.dropout(wide, self.dropout)
        return self.scaling * wide.to(h.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "bottleneck_down.weight": self.down,
            "bottleneck_down.bias": self.down_bias,
            "bottleneck_up.weight": self.up,
            "bottleneck_up.bias": self.up_bias,
        }


@adapter(BottleneckConfig, "linear", "module")
class SequentialBottleneck(Bottleneck):
    r"""y = h + s (U act(D h + c) + e) with h = W x + b, or what else the host returns.   Houlsby et al. 2019.

    h: (..., d)   D: (m, d)   c: (m,)   U: (d, m)   e: (d,)

    Of a host that returns a tuple, h is the first entry. A dropout that the model has between its output projection and
    the residual comes after the adapter here, before it in the paper.
    """

    def __init__(self, config: BottleneckConfig, site: Site):
        width = widths(site)[1]
        super().__init__(config, site, width, width)

    def forward(self, base: Callable[..., Any], *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        y = base(*args, **kwargs)
        return (y[0] + self.update(y[0]), *y[1:]) if isinstance(y, tuple) else y + self.update(y)


@adapter(BottleneckConfig, "linear", "module", variant="parallel")
class ParallelBottleneck(Bottleneck):
    r"""y = f(x) + s (U act(D x + c) + e), f(x) = W x + b or any other host.   He et al. 2022, arXiv 2110.04366.

    x: (..., in)   D: (m, in)   c: (m,)   U: (out, m)   e: (out,)

    Of a host that returns a tuple, the first entry is changed.
    """

    def __init__(self, config: BottleneckConfig, site: Site):
        super().__init__(config, site, *widths(site))

    def forward(self, base: Callable[..., Any], *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        y = base(*args, **kwargs)
        h = y[0] if isinstance(y, tuple) else y
        h = h + self.update(x).to(h.dtype)
        return (h, *y[1:]) if isinstance(y, tuple) else h
