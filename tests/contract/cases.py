"""What the contract tests need to know of a method: how to make its config. A new method adds an entry to `CASES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    BitFitConfig,
    BOFTConfig,
    BottleneckConfig,
    C3AConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    MultitaskPromptTuningConfig,
    OFTConfig,
    PolyConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
)
from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.methods.lora import ALoraLinear
from inlay.registry import registered
from tests.tiny import HOSTS, ids, net

Make = Callable[..., PeftConfig]  # (target_modules=[...]) -> a config whose fresh adapter leaves the output unchanged

CASES: dict[type[PeftConfig], dict[str, Make]] = {
    LoraConfig: {
        "plain": lambda **kw: LoraConfig(r=4, lora_alpha=12, **kw),
        "gaussian-rslora": lambda **kw: LoraConfig(
            r=2, lora_alpha=3, init_lora_weights="gaussian", use_rslora=True, **kw
        ),
        "bias": lambda **kw: LoraConfig(r=2, lora_alpha=4, bias="lora_only", **kw),
        "all-biases": lambda **kw: LoraConfig(r=2, lora_alpha=4, bias="all", **kw),
        "patterns": lambda **kw: LoraConfig(r=2, rank_pattern={"fc": 4, "conv2": 4}, alpha_pattern={"fc": 5}, **kw),
        "dropout": lambda **kw: LoraConfig(r=2, lora_dropout=0.5, **kw),
        "dora": lambda **kw: LoraConfig(r=2, lora_alpha=3, use_dora=True, **kw),
        "dora-dropout-bias": lambda **kw: LoraConfig(r=2, use_dora=True, lora_dropout=0.5, bias="lora_only", **kw),
        "lora-bias": lambda **kw: LoraConfig(r=2, lora_alpha=5, lora_bias=True, **kw),
        "pissa": lambda **kw: LoraConfig(r=2, lora_alpha=3, init_lora_weights="pissa", **kw),
        "olora-dropout": lambda **kw: LoraConfig(r=2, init_lora_weights="olora", lora_dropout=0.5, **kw),
        "dora-pissa": lambda **kw: LoraConfig(r=2, init_lora_weights="pissa_niter_4", use_dora=True, **kw),
    },
    VeraConfig: {
        "plain": lambda **kw: VeraConfig(r=3, **kw),
        "from-the-key": lambda **kw: VeraConfig(r=2, projection_prng_key=5, save_projection=False, **kw),
        "dropout": lambda **kw: VeraConfig(r=2, vera_dropout=0.5, **kw),
    },
    LoHaConfig: {
        "plain": lambda **kw: LoHaConfig(r=2, alpha=3, **kw),
        "rank-1": lambda **kw: LoHaConfig(r=1, **kw),
        "effective": lambda **kw: LoHaConfig(r=2, use_effective_conv2d=True, rank_pattern={"fc": 1}, **kw),
        "dropout": lambda **kw: LoHaConfig(r=2, rank_dropout=0.2, **kw),
    },
    LoKrConfig: {
        "plain": lambda **kw: LoKrConfig(r=1, alpha=3, **kw),
        "whole": lambda **kw: LoKrConfig(r=8, decompose_factor=2, **kw),
        "both": lambda **kw: LoKrConfig(r=1, decompose_both=True, decompose_factor=4, init_weights="lycoris", **kw),
        "effective": lambda **kw: LoKrConfig(r=1, use_effective_conv2d=True, alpha_pattern={"fc": 5}, **kw),
        "dropout": lambda **kw: LoKrConfig(r=1, rank_dropout=0.3, rank_dropout_scale=True, **kw),
    },
    VBLoRAConfig: {
        "plain": lambda **kw: VBLoRAConfig(r=2, num_vectors=5, vector_length=1, init_vector_bank_bound=0.0, **kw),
        "dropout": lambda **kw: VBLoRAConfig(
            r=2, num_vectors=3, vector_length=1, topk=3, init_vector_bank_bound=0.0, vblora_dropout=0.5, **kw
        ),
    },
    RandLoraConfig: {
        "plain": lambda **kw: RandLoraConfig(r=3, randlora_alpha=2, **kw),
        "from-the-key": lambda **kw: RandLoraConfig(
            r=2, randlora_alpha=2, projection_prng_key=5, save_projection=False, sparse=True, **kw
        ),
        "dropout": lambda **kw: RandLoraConfig(r=4, randlora_alpha=2, randlora_dropout=0.5, **kw),
    },
    IA3Config: {
        "output": lambda **kw: IA3Config(feedforward_modules=[], **kw),
        "input": lambda **kw: IA3Config(feedforward_modules=".*", **kw),
        "both": lambda **kw: IA3Config(feedforward_modules=r"(.*\.)?(fc|conv1|lm_head|down_proj)", **kw),
    },
    LNTuningConfig: {"plain": lambda **kw: LNTuningConfig(**kw)},
    BitFitConfig: {"plain": lambda **kw: BitFitConfig(**kw)},
    BottleneckConfig: {
        "houlsby": lambda **kw: BottleneckConfig(bottleneck_size=3, **kw),
        "parallel": lambda **kw: BottleneckConfig(style="parallel", reduction_factor=2, scaling=4, **kw),
        "dropout": lambda **kw: BottleneckConfig(bottleneck_size=2, activation="swish", dropout=0.5, **kw),
    },
    C3AConfig: {
        "plain": lambda **kw: C3AConfig(block_size=1, block_size_pattern={"fc": 2}, init_weights=True, **kw),
    },
    MissConfig: {
        "plain": lambda **kw: MissConfig(r=3, **kw),
        "mini": lambda **kw: MissConfig(r=2, init_weights="mini", **kw),
        "bat": lambda **kw: MissConfig(r=1, init_weights="bat", **kw),
        "dropout": lambda **kw: MissConfig(r=2, miss_dropout=0.4, **kw),
        "bat-dropout": lambda **kw: MissConfig(r=1, init_weights="bat", miss_dropout=0.4, **kw),
    },
    FourierFTConfig: {
        "plain": lambda **kw: FourierFTConfig(n_frequency=12, scaling=40, init_weights=True, **kw),
        "pattern": lambda **kw: FourierFTConfig(
            n_frequency=30, init_weights=True, scaling=20.0, random_loc_seed=3, n_frequency_pattern={"fc": 7}, **kw
        ),
    },
    BOFTConfig: {
        "plain": lambda **kw: BOFTConfig(boft_block_num=1, boft_block_size=0, **kw),
    },
    OFTConfig: {
        "plain": lambda **kw: OFTConfig(r=1, oft_block_size=0, **kw),
        "exact": lambda **kw: OFTConfig(r=1, oft_block_size=0, use_cayley_neumann=False, block_share=True, **kw),
        "constrained": lambda **kw: OFTConfig(r=1, oft_block_size=0, coft=True, eps=1.0, **kw),
    },
    HRAConfig: {
        "plain": lambda **kw: HRAConfig(r=4, **kw),
    },
    TrainableTokensConfig: {
        "plain": lambda **kw: TrainableTokensConfig(token_indices=[3, 2, 4], **kw),
    },
    AdaLoraConfig: {
        "plain": lambda **kw: AdaLoraConfig(init_r=4, target_r=2, total_step=10, **kw),
        "dropout": lambda **kw: AdaLoraConfig(init_r=2, target_r=2, total_step=10, lora_dropout=0.5, **kw),
    },
}

# Methods that cannot sit in `Net` (they need a transformer around them), or an adapter of one that cannot where the
# others can, and the test that has them on real ones.
ELSEWHERE: dict[type[PeftConfig] | type[Adapter], str] = {
    ALoraLinear: "tests/methods/lora/variants/test_alora.py",  # looks for tokens in integer ids of a model
    AdaptionPromptConfig: "tests/prompt/test_adaption_prompt.py",
    MultitaskPromptTuningConfig: "tests/prompt/test_configs.py",
    PolyConfig: "tests/methods/test_poly.py",  # every call needs task_ids
    PrefixTuningConfig: "tests/prompt/models.py",
    PromptEncoderConfig: "tests/prompt/models.py",
    PromptTuningConfig: "tests/prompt/models.py",
}


def adapters_of(make: Make) -> dict[str, type[Adapter]]:
    """kind of host -> adapter class, of the method (and variant of it) that `make`'s config is of."""
    config = make(target_modules=["fc"])
    own = [cls for cls in type(config).__mro__ if any(cls is key[0] for key in registered())][:1]
    return {
        kind: adapter
        for (cls, kind, variant), adapter in sorted(registered().items(), key=lambda item: item[0][1])
        if cls in own and variant == config.variant
    }


def kinds(make: Make) -> list[str]:
    """The kinds of host that the method has adapters for."""
    return list(adapters_of(make))


def methods() -> list[Any]:
    """A maker for every case of every method that sits in layers, as pytest parameters."""
    return [
        pytest.param(make, id=f"{config.__name__}-{case}")
        for config, made in CASES.items()
        for case, make in made.items()
    ]


def placements(formula: bool = False) -> list[Any]:
    """(maker, kind of host), as pytest parameters. `formula`: only of adapters that are a change of the weight."""
    return [
        pytest.param(*p.values, kind, id=f"{p.id}-{kind}")  # type: ignore[arg-type]
        for p in methods()
        for kind, adapter in adapters_of(p.values[0]).items()  # type: ignore[arg-type]
        if not formula or (adapter.mergeable and not adapter.replaces_host)
    ]


def targets(make: Make) -> list[str]:
    """Every module of `Net` that the method can sit in."""
    return [path for kind in kinds(make) for path in HOSTS[kind] if fits(make, net().get_submodule(path))]


def fits(make: Make, module: Any) -> bool:
    """Whether the method can sit in a module of a kind that it has an adapter for: BitFit needs a bias there."""
    return not isinstance(make(target_modules=["fc"]), BitFitConfig) or getattr(module, "bias", None) is not None


def hosts(kind: str, make: Make) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Modules of a kind that the method can sit in, in float64, each with inputs of several shapes."""
    for module, inputs in every_host_of(kind):
        if fits(make, module):
            yield module, inputs


def every_host_of(kind: str) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Modules of a kind in float64, each with inputs of several shapes."""
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
    from transformers.pytorch_utils import Conv1D

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    if kind == "linear":
        inputs = [rand(8), rand(3, 8), rand(2, 3, 8), rand(2, 2, 2, 8), rand(0, 8), rand(8, 3).T]
        for module in (nn.Linear(8, 6), nn.Linear(8, 6, bias=False), Conv1D(6, 8)):
            nn.init.normal_(module.weight)
            yield module, inputs
    elif kind == "embedding":
        inputs = [
            torch.tensor(3),
            torch.tensor([2, 3, 4, 3]),
            ids(2, 3) + 2,
            ids(0, 3),
        ]  # no padding: its row has no gradient
        yield nn.Embedding(40, 8), inputs
        yield nn.Embedding(40, 8, padding_idx=0), inputs
        yield BartScaledWordEmbedding(40, 8, padding_idx=1, embed_scale=3.0), inputs
    elif kind == "module":
        inputs = [rand(8), rand(3, 8), rand(2, 3, 8), rand(0, 8)]
        yield nn.LayerNorm(8), inputs
        yield nn.RMSNorm(8), inputs
    else:
        d = int(kind[4])
        cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
        inputs = [rand(2, 4, *[7, 6, 5][:d]), rand(4, *[7, 6, 5][:d]), rand(0, 4, *[7, 6, 5][:d])]
        yield cls(4, 6, 3), inputs
        yield cls(4, 6, (1, 2, 3)[:d], stride=2, padding=1, dilation=1, bias=False), inputs
        yield cls(4, 6, 3, padding="same", dilation=2, groups=2), inputs
        yield cls(4, 6, 3, padding=1, padding_mode="circular"), inputs[:2]


def operate(host: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a host of a class from `hosts` computes with another canonical weight and bias, written out here again."""
    if isinstance(host, nn.Embedding):
        return weight[x] * float(getattr(host, "embed_scale", 1.0))
    if isinstance(host, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        y = weight * centred / (centred.square().mean(-1, keepdim=True) + host.eps).sqrt()
        return y if bias is None else y + bias
    if isinstance(host, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        padding: Any = host.padding
        if host.padding_mode == "circular":
            x, padding = F.pad(x, host._reversed_padding_repeated_twice, mode="circular"), 0
        return convolve(x, weight, bias, host.stride, padding, host.dilation, host.groups)
    y = torch.einsum("...i,oi->...o", x, weight)
    return y if bias is None else y + bias


def canonical(host: nn.Module) -> Tensor:
    """A host's weight as adapters see it: (out, in) for every linear layer."""
    weight: Any = host.weight
    return weight.T if type(host).__name__ == "Conv1D" else weight  # type: ignore[no-any-return]


def view_of(make: Make, base: Any = None, **kwargs: Any) -> Any:
    """A view of a `Net` with the method in every host it can sit in."""
    from inlay import get_peft_model

    return get_peft_model(net() if base is None else base, make(target_modules=targets(make)), **kwargs)
