"""LoRA's config: the fields of its `adapter_config.json`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from inlay.checks import check_bool, check_choice, check_int, check_number, check_patterns
from inlay.config import AdapterConfig
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedParameters
from inlay.core.host import is_transposed, kind_of
from inlay.core.targets import matches_name, pattern_value
from inlay.errors import ConfigError, TargetError
from inlay.methods.targets import ATTENTION
from inlay.methods.tokens import TokenRows

INITS = (True, False, "gaussian", "orthogonal")
BIASES = ("none", "all", "lora_only")
_MAX_RANK = 65_536


@dataclass
class LoraConfig(AdapterConfig, peft_type="LORA"):
    r"""W' = W + s B A with s = alpha / r, or alpha / sqrt(r) with `use_rslora`.

    A: (r, in)   B: (out, r)   r: rank   alpha: `lora_alpha`

    Args:
        r: rank of the update.
        lora_alpha: alpha; the update's strength, independent of the rank.
        lora_dropout: probability of zeroing an input of A in training.
        bias: biases to train: "none", "all" of the model's, or "lora_only", those of adapted layers.
        use_rslora: s = alpha / sqrt(r) (rank-stabilised, arXiv 2312.03732).
        init_lora_weights: True: A Kaiming-uniform with a = sqrt(5), B zero. "gaussian": A normal with deviation 1/r, B
            zero. "orthogonal": A and B from orthogonal halves, BA = 0; r must be even. False: A and B both random, so
            that the adapter is not the identity (for tests).
        rank_pattern, alpha_pattern: module name or regex -> its own r, alpha.
        fan_in_fan_out: whether the targets store their weight as (in, out). Set when they are known: the layout is read
            from the layers, this is for other readers of the file.
        trainable_token_indices: rows of the input embedding to train in full, or a dict from embedding name to rows.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    unsupported: ClassVar[Mapping[str, object]] = {
        "use_dora": False,
        "lora_bias": False,
        "use_qalora": False,
        "qalora_group_size": 16,
        "use_bdlora": None,
        "layer_replication": None,
        "target_parameters": None,
        "ensure_weight_tying": False,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "arrow_config": None,
        "alora_invocation_tokens": None,
        "kasa_config": None,
        "monteclora_config": None,
        "velora_config": None,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank("r", self.r)
        check_number("lora_alpha", self.lora_alpha)
        check_number("lora_dropout", self.lora_dropout, 0.0, 1.0)
        check_choice("bias", self.bias, BIASES)
        check_choice("init_lora_weights", self.init_lora_weights, INITS)
        check_bool("use_rslora", self.use_rslora)
        check_bool("fan_in_fan_out", self.fan_in_fan_out)
        check_patterns("rank_pattern", self.rank_pattern, check_rank)
        check_patterns("alpha_pattern", self.alpha_pattern, check_number)
        tokens = self.trainable_token_indices
        for name, indices in tokens.items() if isinstance(tokens, dict) else [("", [] if tokens is None else tokens)]:
            if not isinstance(name, str) or not isinstance(indices, list):
                raise ConfigError.of("trainable_token_indices", tokens, "a list of token indices, or a dict of such")

    def rank(self, path: str) -> int:
        """The rank r of the adapter at `path`."""
        return int(pattern_value(self.rank_pattern, path, self.r, "rank_pattern"))

    def scale(self, path: str) -> float:
        """The scale s of the adapter at `path`."""
        alpha, r = pattern_value(self.alpha_pattern, path, self.lora_alpha, "alpha_pattern"), self.rank(path)
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def note(self, heads: Collection[str], hosts: Sequence[Any]) -> None:
        super().note(heads, hosts)
        linear = [host for host in hosts if kind_of(host) == "linear"]
        if linear:
            self.fan_in_fan_out = all(map(is_transposed, linear))

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return ATTENTION.get(model_type or "")

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        if self.bias == "all":
            yield from _other_biases(modules, set(targets))
        if self.trainable_token_indices is not None:
            yield from _token_rows(modules, self.trainable_token_indices)


def check_rank(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is a rank: an integer from 1 to 65536."""
    check_int(name, value, 1)
    if value > _MAX_RANK:  # type: ignore[operator]
        raise ConfigError.of(name, value, f"at most {_MAX_RANK}")


def _other_biases(modules: Mapping[str, nn.Module], targets: set[str]) -> Iterable[tuple[str, Callable[..., Adapter]]]:
    """Every parameter called "bias", outside the targets (whose bias is part of their adapter)."""
    made: dict[int, nn.Parameter] = {}
    for path, module in modules.items():
        if module._parameters.get("bias") is not None and path not in targets:
            yield path, functools.partial(TrainedParameters, names=["bias"], made=made)


def _token_rows(
    modules: Mapping[str, Any], tokens: list[int] | dict[str, list[int]]
) -> Iterable[tuple[str, Callable[..., Adapter]]]:
    """The embeddings whose rows are trained, each with the output head tied to it."""
    root = modules[""]
    if isinstance(tokens, list):
        embedding = root.get_input_embeddings() if hasattr(root, "get_input_embeddings") else None
        paths = [p for p, m in modules.items() if m is embedding or (embedding is None and p.endswith("embed_tokens"))]
        wanted = dict.fromkeys(paths[:1], tokens)
    else:
        wanted = {}
        for name, indices in tokens.items():
            paths = [p for p in modules if matches_name(p, name)]
            wanted.update(dict.fromkeys(paths, indices) if paths else {name: indices})
    strangers = [p for p in wanted if p not in modules or kind_of(modules[p]) not in ("embedding", "linear")]
    if strangers or not wanted:
        raise TargetError.of(
            "trainable_token_indices", strangers or tokens, "names of embeddings of the model, as {name: indices}"
        )
    for path, indices in wanted.items():
        host = modules[path]
        made: list[TokenRows] = []

        def first(config: Any, site: Any, indices: list[int] = indices, made: list[TokenRows] = made) -> TokenRows:
            made.append(TokenRows(config, site, indices))
            return made[0]

        def tied(config: Any, site: Any, indices: list[int] = indices, made: list[TokenRows] = made) -> TokenRows:
            return TokenRows(config, site, indices, tied_to=made[0])

        yield path, first
        for other, module in modules.items():
            if module is not host and other not in wanted and getattr(module, "weight", None) is host.weight:
                yield other, tied
