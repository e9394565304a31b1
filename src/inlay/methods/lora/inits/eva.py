"""EVA, explained variance adaptation (Paischer et al. 2024, arXiv 2410.07170): A starts where the layer's inputs vary.

    X - mean(X) = U S V^T over a sample of inputs,  A = V_r^T,  B = 0

The ranks are dealt out anew: of the ratios S_i^2 / ||X - mean(X)||^2 of all layers, the sum(r) largest each give a rank
to their layer, which gets at most rho r. V and S are kept up to date batch by batch (Ross et al. 2008) until they
settle.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.adapter import Adapter
from inlay.core.host import site
from inlay.core.index import AdapterIndex, index_of, task_heads
from inlay.core.plan import plan
from inlay.errors import ConfigError, StateError
from inlay.methods.lora.inits.part import Part
from inlay.methods.lora.inits.targets import hooked, linear_targets
from inlay.methods.lora.inits.variance import Variance

_PASSES = 100  # over the data, before it counts as not settling


@dataclass
class EvaConfig(Part):
    """How EVA deals out ranks.

    Args:
        rho: a layer's rank is at most rho times what the config gives it; 1 leaves all ranks as they are.
        tau: the cosine between a direction and itself a batch before, from which on it counts as settled.
        use_label_mask, label_mask_value: leave out tokens whose label is this value.
        whiten: A = S^(-1/2) V^T.
        adjust_scaling_factors: change alpha with the rank, so that alpha / r stays.
    """

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        check_number("rho", self.rho, 1.0)
        check_number("tau", self.tau, 0.0, 1.0)
        check_int("label_mask_value", self.label_mask_value, -(2**31))
        for name in ("use_label_mask", "whiten", "adjust_scaling_factors"):
            check_bool(name, getattr(self, name))


def call_with_fields(model: Any, inputs: Mapping[str, Any]) -> Any:
    """`model(**inputs)`"""
    return model(**inputs)


def real_tokens(inputs: Mapping[str, Any], config: Any) -> Tensor:
    """(tokens, 2): the (row, position) of every token that is neither padding nor masked in the labels."""
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()
    labels = inputs.get("labels") if config.eva_config.use_label_mask else None
    if labels is not None and labels.shape == mask.shape:  # labels of whole rows mask no tokens
        mask = mask & (labels != config.eva_config.label_mask_value)
    return mask.nonzero()


def of_tokens(layer_input: Any, tokens: Any, layer_name: str) -> Tensor:
    """(tokens, in): a layer's input at the tokens that `real_tokens` found."""
    x: Tensor = layer_input if isinstance(layer_input, Tensor) else layer_input[0]
    return x[tokens.T.unbind()]


@torch.no_grad()
def get_eva_state_dict(
    model: nn.Module,
    dataloader: Any,
    peft_config: Any = None,
    forward_fn: Callable[[Any, Any], object] = call_with_fields,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = real_tokens,
    prepare_layer_inputs_fn: Callable[[Any, Any, str], Tensor] | None = of_tokens,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """path -> A: (rank, in) of every linear target, by EVA; the rank may be 0.

    Args:
        model: a view, or a plain model (then with `peft_config`). It runs on the data as the base does.
        dataloader: batches; gone through again until the directions settle.
        forward_fn: runs the model on a batch.
        prepare_model_inputs_fn: (batch, config) -> what `prepare_layer_inputs_fn` gets; None passes the batch.
        prepare_layer_inputs_fn: (a layer's input, that, path) -> rows (n, in); None takes every row.
        adapter_name: of the view's adapter.
        gather_distributed_inputs, show_progress_bar: accepted for compatibility; each process uses its own data.

    Raises:
        ConfigError: no data or no config. StateError: a layer saw too few rows per batch, or does not settle.
    """
    index = getattr(model, "_inlay", None)
    index = index if isinstance(index, AdapterIndex) else None
    if peft_config is None and index is not None:
        index.require(adapter_name)
        peft_config = index.configs[adapter_name]
    if peft_config is None or getattr(peft_config, "eva_config", None) is None:
        raise ConfigError.of("peft_config", peft_config, "a LoraConfig with init_lora_weights='eva'")
    if not getattr(dataloader, "__len__", lambda: 0)():
        raise ConfigError.of("dataloader", dataloader, "a DataLoader or list of at least one batch, of known length")
    config, part = peft_config, peft_config.eva_config
    targets = linear_targets(model, config)
    most = {p: min(round(config.rank(p) * part.rho), site(p, m, "linear").in_features) for p, m in targets.items()}
    budget = sum(config.rank(p) for p in targets)
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        if index is not None:
            stack.enter_context(index.active.switched(disabled=True))
        first = next(iter(dataloader))
        leader = _leaders(targets, lambda: forward_fn(model, _to(first, device)))
        for path, other in leader.items():
            most[other] = max(most[other], most[path])
        found = {path: Variance(most[path]) for path in dict.fromkeys(leader.values())}
        ranks = {path: most[leader[path]] for path in targets}
        for step, batch in enumerate(_again(dataloader)):
            unsettled = [p for p, v in found.items() if not bool(v.settled[: ranks[p]].all())]
            if not unsettled:
                break
            if step >= _PASSES * len(dataloader):
                raise StateError(
                    f"EVA: the inputs of {unsettled[0]!r} do not settle in {_PASSES} passes over the data: give more "
                    f"than {most[unsettled[0]]} tokens per batch, or lower eva_config.tau or rho."
                )
            inputs = _to(batch, device)
            known = inputs if prepare_model_inputs_fn is None else prepare_model_inputs_fn(inputs, config)

            def take(path: str, args: Any, known: Any = known) -> None:
                pick = prepare_layer_inputs_fn
                found[path].add(args[0].flatten(0, -2) if pick is None else pick(args, known, path), part.tau)

            hooked({p: targets[p] for p in unsettled}, take, functools.partial(forward_fn, model, inputs))
            if all(v.s is not None for v in found.values()):
                ranks = _deal(found, leader, most, budget)
    state = {}
    for path, other in leader.items():
        v, s = found[other].v[: ranks[path]], found[other].s
        state[path] = v / s[: ranks[path]].sqrt()[:, None] if part.whiten and s is not None else v.clone()
    return state


@torch.no_grad()
def initialize_lora_eva_weights(
    model: Any,
    dataloader: Any = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    **kwargs: Any,
) -> Any:
    """Gives a view's adapter, made with `init_lora_weights="eva"`, its start and its ranks from data; returns the view.

    The adapter is made anew: call this before making an optimizer. Ranks that differ from the config's `r` are written
    into its `rank_pattern` and `alpha_pattern`, layers of rank 0 leave its `target_modules`.

    Args:
        dataloader: batches for `get_eva_state_dict`, to which further keyword arguments go.
        eva_state_dict: what that returned, instead of a dataloader.

    Raises:
        ConfigError: the adapter's init is another, there is neither data nor state, or a state of other layers.
        StateError: there is no such adapter, or it is merged.
    """
    index = index_of(model)
    index.require(adapter_name)
    config: Any = index.configs[adapter_name]
    if getattr(config, "init_lora_weights", None) != "eva":
        raise ConfigError.of("init_lora_weights", getattr(config, "init_lora_weights", None), "'eva' for EVA")
    if eva_state_dict is None:
        if dataloader is None:
            raise ConfigError.of("dataloader", None, "batches, unless eva_state_dict is given")
        eva_state_dict = get_eva_state_dict(model, dataloader, adapter_name=adapter_name, **kwargs)
    placed: Mapping[str, Any] = index.placed[adapter_name]
    ours = {path: a for path, a in placed.items() if hasattr(a, "with_anchor")}
    strangers = [path for path in eva_state_dict if path not in ours]
    if strangers:
        raise ConfigError.of("eva_state_dict", strangers, "paths of the adapter's layers")
    ranks = {p: len(eva_state_dict[p]) if p in eva_state_dict else config.rank(p) for p in ours}
    keep_alpha = not config.eva_config.adjust_scaling_factors
    alphas = {p: config.alpha(p) * (1 if keep_alpha else r / config.rank(p)) for p, r in ranks.items()}
    changed = config.replaced(
        target_modules=[p for p, r in ranks.items() if r],
        rank_pattern={p: r for p, r in ranks.items() if r not in (0, config.r)},
        alpha_pattern={p: a for p, a in alphas.items() if ranks[p] and a != config.lora_alpha},
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    )
    narrow = all(a.A.dtype.itemsize == 2 for a in ours.values())
    placements, kept = plan(model, changed, heads=task_heads(model), keep_base_dtype=narrow)
    for p in placements:
        if p.path in eva_state_dict:
            own: Any = p.adapter
            own.A.copy_(eva_state_dict[p.path])
    rest: Mapping[str, Adapter] = {path: a for path, a in placed.items() if path not in ours}
    placements = [dataclasses.replace(p, adapter=rest.get(p.path, p.adapter)) for p in placements]
    active, trainable = index.active.names, adapter_name in index.trainable
    index.remove(adapter_name)
    index.add(adapter_name, kept, placements)
    index.active.set(active)
    if trainable:
        index.require_grad(adapter_name, True)
    return model


def _deal(found: Mapping[str, Variance], leader: Mapping[str, str], most: Mapping[str, int], budget: int) -> Any:
    """path -> rank. Of layers with one input, that which stands for all has the most."""
    shares = [(ratio, path) for path, other in leader.items() for ratio in found[other].ratios[: most[path]]]
    shares.sort(key=lambda share: -share[0])
    ranks = Counter(path for _, path in shares[:budget])
    counts = {path: ranks[path] for path in leader}
    for path, other in leader.items():
        if counts[other] < counts[path]:
            counts[other], counts[path] = counts[path], counts[other]
    return counts


def _leaders(targets: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, str]:
    """path -> the first layer that got the same input (itself, if none did before it)."""
    leader: dict[str, str] = {}
    last: list[Any] = [None, ""]

    def see(path: str, args: Any) -> None:
        if args[0] is not last[0]:
            last[:] = args[0], path
        leader.setdefault(path, last[1])

    hooked(targets, see, run)
    missed = [path for path in targets if path not in leader]
    if missed:
        raise StateError(f"EVA: the model's forward pass did not reach {missed[0]!r}, which is targeted.")
    return {path: leader[path] for path in targets}


def _again(batches: Iterable[Any]) -> Iterable[Any]:
    while True:
        yield from batches


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_to(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
