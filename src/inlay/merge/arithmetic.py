"""Adapters made of others, as one new adapter: weighted sums of LoRA updates, and of (IA)^3's scales.

What the combination types compute is in `lowrank_sum`, of which elementary operations in `task_arithmetic`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.checks import check_number
from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.index import AdapterIndex, index_of, task_heads
from inlay.core.plan import Placement, plan
from inlay.errors import ConfigError
from inlay.inject import aliases_of, check_free, describe_base
from inlay.merge.exactly import lora_of
from inlay.merge.lowrank_sum import Combination, rank_of
from inlay.merge.parts import Parts, parts_of
from inlay.methods.ia3 import IA3Config, IA3Scale
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import LowRank

Values = dict[str, dict[str, Tensor]]  # path of a host -> parameter of the adapter there -> its value


@torch.no_grad()
def add_weighted_adapter(
    model: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    generator: torch.Generator | None = None,
) -> None:
    r"""Adds the adapter `adapter_name`, inactive and frozen: `adapters`, each times its weight.

    With w_i the weights and D_i = s_i B_i A_i the updates of LoRA adapters, "cat" is D = sum of w_i D_i, of the sum of
    the ranks, and "svd" its best approximation of rank `svd_rank`. **"linear" is not that sum**, though peft's users
    know it: A and B are summed apart, A = sum of sgn(w_i s_i) sqrt|w_i s_i| A_i, B = sum of sqrt|w_i s_i| B_i,
    and their product has cross terms. "ties", "dare_linear", "dare_ties" and "magnitude_prune" treat A and B apart in
    the same way; followed by "_svd" they treat the D_i, and what results is approximated. See `lowrank_sum` and
    `task_arithmetic`.

    Of (IA)^3 it is l = sum of w_i l_i, l_i being 1 where an adapter has none; the type has no effect.

    **One adapter** at weight 1 is copied, of any method and for any type, config included. At another weight w a LoRA's
    alpha is multiplied by w, which is exact, whatever the type.

    A layer that some of the adapters do not have gets the sum of the others. With `lora_bias`, the change s c of the
    bias is one more tensor that the method combines (exactly summed by "cat", "svd" and "linear"). A module or tokens
    trained in full are taken as they are, from the one adapter that has them. The result's scale is 1.

    Args:
        model: a view, or a model with injected adapters.
        adapters, weights: names, and one finite number for each; negative ones subtract.
        combination_type: "svd", "linear", "cat", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
            "dare_ties_svd", "magnitude_prune" or "magnitude_prune_svd". Equal ranks are needed without svd,
            except by cat.
        svd_rank: of the result for "svd" and "..._svd"; by default the largest rank of the adapters. Lower where a
            lower one is exact.
        svd_clamp: q-quantile of the entries of A and B after an svd, to which they are clamped: a remedy for outliers,
            after which D is no longer the best approximation. It depends on the signs that the svd happens to give.
        svd_full_matrices: accepted for compatibility; only the leading singular vectors are used, or computed.
        svd_driver: cuSOLVER's method of the "..._svd" types: None, "gesvd", "gesvdj" or "gesvda". No effect on CPUs.
        density: share of the entries that is kept by "ties...", "dare..." and "magnitude_prune...".
        majority_sign_method: "total" or "frequency", of "ties..." and "dare_ties...".
        generator: of DARE's random choices; by default torch's global one. They are drawn layer by layer in the model's
            order, for A of each adapter and then for B of each, or for the D_i: as in peft, so that the same seed gives
            the same adapter (on CPUs, in float32).

    Raises:
        StateError: an adapter that does not exist; one is merged into the weights.
        ConfigError: a name that is taken; arguments that are not allowed; adapters whose sum is no such adapter (DoRA,
            Activated LoRA, biases trained in full, other methods); several that train the same thing in full.
        Nothing has changed then.

    Example:
        >>> view.add_weighted_adapter(["math", "code"], [0.7, 0.3], "both", combination_type="cat")
    """
    index = index_of(model)
    how = Combination(
        combination_type,
        svd_rank,
        svd_clamp,
        svd_full_matrices,
        svd_driver,
        density,
        majority_sign_method,
        generator,
    )
    check_free(index, adapter_name)
    if isinstance(adapters, str) or not adapters:
        raise ConfigError.of("adapters", adapters, "a list of at least one adapter's name")
    for name in adapters:
        index.require(name)
    if len(adapters) != len(weights):
        raise ConfigError.of("weights", list(weights), f"one number for each of the {len(adapters)} adapters")
    for weight in weights:
        check_number("weights", weight)
    if len(adapters) == 1:
        multiple = _multiple(index.configs[adapters[0]], weights[0])
        if multiple is not None:
            _copy(index, adapters[0], adapter_name, multiple, weights[0])
            return
        how = Combination("cat")
    _add_sum(model, index, adapters, weights, adapter_name, how)


def _multiple(config: PeftConfig, weight: float) -> PeftConfig | None:
    """The config of `weight` times an adapter with this config and the same tensors; None if there is none."""
    if weight == 1:
        return config.copy()
    if not isinstance(config, LoraConfig) or config.use_dora or config.bias != "none" or config.anchored:
        return None  # an anchor is found again by the scale
    for alpha in (config.lora_alpha, *config.alpha_pattern.values()):
        check_number("weights * lora_alpha", weight * alpha)
    return config.replaced(
        lora_alpha=weight * config.lora_alpha,
        alpha_pattern={key: weight * alpha for key, alpha in config.alpha_pattern.items()},
    )


def _copy(index: AdapterIndex, source: str, name: str, config: PeftConfig, weight: float) -> None:
    """Adds the adapter `name` with the tensors of `source` and `config`, the config of `weight` times it."""
    copies = copy.deepcopy(index.placed[source])
    for adapter in copies.values():
        adapter.requires_grad_(False)
        if isinstance(adapter, LowRank):
            adapter.scale = weight * adapter.scale
    index.add(name, config, [Placement(path, index.hosts[path], adapter) for path, adapter in copies.items()])


# ------------------------------------------------------------------ sums


def _add_sum(
    model: Any, index: AdapterIndex, names: Sequence[str], weights: Sequence[float], new: str, how: Combination
) -> None:
    configs = [index.configs[name] for name in names]
    kind = next((k for k in _SUMS if isinstance(configs[0], k)), None)
    for name, config in zip(names, configs, strict=True):
        if kind is None or not isinstance(config, kind):
            raise ConfigError.of(
                "adapters",
                list(names),
                "LoRA adapters only, or IA3 adapters only, at other weights than a single 1",
                f"{name!r} is {config.peft_type}. If it is a change of weights, convert it first with "
                "inlay.convert_to_lora.",
            )
    summed, config_of, values_of = _SUMS[kind]  # type: ignore[index]
    parts = parts_of(model, index, names, weights, summed)
    narrow = all(p.dtype.itemsize == 2 for found in parts.terms.values() for _, _, a in found for p in a.parameters())
    placements, kept = plan(
        model,
        config_of(parts, how),
        heads=task_heads(model),
        aliases=aliases_of(model),
        keep_base_dtype=narrow,
    )  # which draws numbers, as in peft, before DARE does
    describe_base(kept, model)
    values = values_of(parts, how, kept)
    for p in placements:
        if p.path in parts.whole:
            p.adapter.load_state_dict(parts.whole[p.path][1].state_dict())
            continue
        own = dict(p.adapter.named_parameters())
        for key, value in values[p.path].items():
            own[key].copy_(value.reshape(own[key].shape))
    index.add(new, kept, placements)


def _lora_config(parts: Parts, how: Combination) -> LoraConfig:
    """Of a LoRA of scale 1, each layer of the rank that it needs."""
    tokens = None
    for name, config in zip(parts.names, parts.configs, strict=True):
        own = config.trainable_token_indices
        if config.bias != "none" or (own is not None and tokens is not None):
            raise ConfigError.of(
                "adapters",
                list(parts.names),
                "adapters that train no biases in full, and tokens in one at most",
                f"{name!r} has bias={config.bias!r}, trainable_token_indices={own!r}. "
                "Alone, at weight 1, any adapter is copied.",
            )
        tokens = own if tokens is None else tokens
    for path, found in parts.terms.items():
        for i, _, adapter in found:
            _check_plain(parts.names[i], path, adapter)
    how.check_density()
    if how.combination_type == how.method:
        _check_ranks(parts, how.combination_type)
    wanted = how.svd_rank or max(rank_of(adapter) for found in parts.terms.values() for _, _, adapter in found)
    first = parts.configs[0]
    return lora_of(
        {path: how.rank(_weighed(found), wanted) for path, found in parts.terms.items()},
        **parts.fields(),
        lora_dropout=first.lora_dropout,
        lora_bias=any(adapter.c is not None for found in parts.terms.values() for _, _, adapter in found),
        init_lora_weights=first.init_lora_weights if first.init_lora_weights in (False, "gaussian") else True,
        trainable_token_indices=tokens,
    )


def _lora_values(parts: Parts, how: Combination, config: LoraConfig) -> Values:
    values: Values = {}
    for path, found in parts.terms.items():
        a, b = how.factors(_weighed(found), config.rank(path), parts.hosts[path])
        shift = how.shift(_weighed(found))
        own = {"lora_A": a, "lora_B": b, "lora_bias": shift}
        values[path] = {key: value for key, value in own.items() if value is not None}
    return values


def _weighed(found: Sequence[tuple[int, float, Any]]) -> list[tuple[float, LowRank]]:
    return [(weight, adapter) for _, weight, adapter in found]


def _check_plain(name: str, path: str, adapter: LowRank) -> None:
    """Raises ConfigError unless `adapter` is an additive change of a weight for all inputs."""
    if adapter.reads_weight or not type(adapter).mergeable:
        raise ConfigError.of(
            "adapters",
            name,
            "LoRA adapters whose sum is a LoRA",
            f"At {path!r} it is {type(adapter).__name__}, which is no multiple or part of one: it can be added alone, "
            "at weight 1.",
        )


def _check_ranks(parts: Parts, kind: str) -> None:
    for path, found in parts.terms.items():
        ranks = {parts.names[i]: rank_of(adapter) for i, _, adapter in found}
        if len(set(ranks.values())) > 1:
            raise ConfigError.of(
                "combination_type",
                kind,
                "'cat', 'svd' or another '..._svd' for adapters of different ranks",
                f"At {path!r} these are {', '.join(f'{name!r}: {r}' for name, r in ranks.items())}.",
            )


def _ia3_config(parts: Parts, how: Combination) -> IA3Config:
    inner = [path for path, ((_, _, adapter), *_) in parts.terms.items() if adapter.inner]
    for path, ((first, _, one), *others) in parts.terms.items():
        for i, _, adapter in others:
            if adapter.inner != one.inner:
                raise ConfigError.of(
                    "adapters",
                    list(parts.names),
                    "IA3 adapters that agree in their feedforward_modules",
                    f"At {path!r} one of {parts.names[first]!r} and {parts.names[i]!r} scales the input, the other the "
                    "output.",
                )
    fields = {**parts.fields(), "feedforward_modules": copy.copy(parts.configs[0].feedforward_modules)}
    if not parts.alike:
        fields |= {"target_modules": list(parts.terms), "feedforward_modules": inner}
    return IA3Config(**fields)


def _ia3_values(parts: Parts, how: Combination, config: IA3Config) -> Values:
    """l = sum of w_i l_i, with l_i = 1 where there is none."""
    values: Values = {}
    for path, found in parts.terms.items():
        absent = set(range(len(parts.names))) - {i for i, _, _ in found}
        total = sum(weight * adapter.l for _, weight, adapter in found)
        values[path] = {"l": total + sum(parts.weights[i] for i in absent)}
    return values


_SUMS: dict[type[PeftConfig], tuple[type[Adapter], Any, Any]] = {
    LoraConfig: (LowRank, _lora_config, _lora_values),
    IA3Config: (IA3Scale, _ia3_config, _ia3_values),
}
"""Config -> class of the adapters that are summed, (parts, how) -> config of the sum, (parts, how, config) -> values.

The config functions refuse what has no sum.
"""
