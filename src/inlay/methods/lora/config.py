"""LoRA's config: the fields of its `adapter_config.json`."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from inlay.checks import check_bool, check_choice, check_indices, check_int, check_number, check_patterns
from inlay.core.active import Call
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedParameters
from inlay.core.host import end_of, is_encoder_decoder, kind_of
from inlay.core.targets import matches_name, pattern_value
from inlay.errors import ConfigError, InlayWarning, TargetError
from inlay.methods.layout import LayoutConfig
from inlay.methods.lora.inits import FROM_DATA, Prepared, is_anchored
from inlay.methods.lora.inits.corda import CordaConfig
from inlay.methods.lora.inits.eva import EvaConfig
from inlay.methods.lora.inits.lora_ga import LoraGAConfig
from inlay.methods.lora.invocation import spans
from inlay.methods.tokens import TokenRows

INITS = (True, False, "gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora_ga")
BIASES = ("none", "all", "lora_only")
_MAX_RANK = 65_536
_PARTS: dict[str, Any] = {"eva": EvaConfig, "corda": CordaConfig, "lora_ga": LoraGAConfig}


@dataclass
class LoraConfig(LayoutConfig, peft_type="LORA"):
    r"""W' = W + s B A with s = alpha / r, or alpha / sqrt(r) with `use_rslora`.

    A: (r, in)   B: (out, r)   r: rank   alpha: `lora_alpha`

    Args:
        r: rank of the update.
        lora_alpha: alpha; the update's strength, independent of the rank.
        lora_dropout: probability of zeroing an input of A in training.
        bias: biases to train: "none", "all" of the model's, or "lora_only", those of adapted layers.
        use_rslora: s = alpha / sqrt(r) (rank-stabilised, arXiv 2312.03732).
        use_dora: train the length of each output's weights apart from their direction (DoRA, `variants.dora`).
        lora_bias: train a bias c along with B: b' = b + s c. Only layers that have a bias can be merged then.
        init_lora_weights: True: A Kaiming-uniform with a = sqrt(5), B zero. "gaussian": A normal with deviation 1/r, B
            zero. "orthogonal": A and B from orthogonal halves, BA = 0; r must be even. False: A and B both random, so
            that the adapter is not the identity (for tests). "pissa", "pissa_niter_N" (N steps of an approximation),
            "olora", "corda", "lora_ga", "eva": see `inlay.methods.lora.inits`. All but False start as the base.
        eva_config, corda_config, lora_ga_config: of the init of that name.
        alora_invocation_tokens: Activated LoRA (`variants.alora`): the adapter acts on these tokens, where they occur
            last in a row, and on all that follow; before, and in rows without them, the model is its base.
        rank_pattern, alpha_pattern: module name or regex -> its own r, alpha.
        trainable_token_indices: rows of the input embedding to train in full, or a dict from embedding name to rows.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    eva_config: EvaConfig | dict[str, Any] | None = None
    corda_config: CordaConfig | dict[str, Any] | None = None
    lora_ga_config: LoraGAConfig | dict[str, Any] | None = None
    alora_invocation_tokens: list[int] | None = None

    circumstances: ClassVar[tuple[str, ...]] = (
        *LayoutConfig.circumstances,
        *("init_lora_weights", "lora_dropout"),
    )
    without_effect = ("peft_version", "runtime_config")  # an adapter computes where its layer does
    unsupported: ClassVar[Mapping[str, object]] = {
        "use_qalora": False,
        "qalora_group_size": 16,
        "use_bdlora": None,
        "layer_replication": None,
        "target_parameters": None,
        "ensure_weight_tying": False,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "arrow_config": None,
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
        if self.init_lora_weights == "loftq":
            raise ConfigError.of(
                "init_lora_weights",
                "loftq",
                "another start",
                "LoftQ puts a quantised weight in place of the base's, which views share: make a view of a quantised "
                "base and call replace_lora_weights_loftq; for a file of peft's, load that base and pass a config with "
                "init_lora_weights=True and loftq_config={}.",
            )
        if not is_anchored(self.init_lora_weights):
            check_choice("init_lora_weights", self.init_lora_weights, INITS)
        for name in ("use_rslora", "use_dora", "lora_bias"):
            check_bool(name, getattr(self, name))
        self._check_parts()
        self._check_invocation()
        check_patterns("rank_pattern", self.rank_pattern, check_rank)
        check_patterns("alpha_pattern", self.alpha_pattern, check_number)
        tokens = self.trainable_token_indices
        for name, indices in tokens.items() if isinstance(tokens, dict) else [("", [] if tokens is None else tokens)]:
            if not isinstance(name, str) or not isinstance(indices, list):
                raise ConfigError.of("trainable_token_indices", tokens, "a list of token indices, or a dict of such")

    def _check_parts(self) -> None:
        """Settles the parts that belong to one init, and refuses what does not go together."""
        self.prepared = Prepared()
        self.saved_plain = False
        init = self.init_lora_weights
        for name, cls in _PARTS.items():
            part = getattr(self, f"{name}_config")
            if isinstance(part, Mapping):
                part = cls.from_dict(part)
            if part is not None and not isinstance(part, cls):
                raise ConfigError.of(f"{name}_config", part, f"a {cls.__name__}, or its fields as a dict")
            if part is not None and init != name:
                warnings.warn(
                    f"{name}_config has no effect unless init_lora_weights={name!r}; it is {init!r}.",
                    InlayWarning,
                    stacklevel=4,
                )
            setattr(self, f"{name}_config", cls() if part is None and init == name else part)
        if self.lora_bias and self.use_dora:
            raise ConfigError.of("lora_bias", True, "False with use_dora", "DoRA has no bias of its own.")
        if self.lora_bias and not isinstance(init, bool):
            raise ConfigError.of("init_lora_weights", init, "True or False with lora_bias")

    def _check_invocation(self) -> None:
        """Refuses what would change the model before the invocation too."""
        tokens = self.alora_invocation_tokens = check_indices("alora_invocation_tokens", self.alora_invocation_tokens)
        if tokens is None:
            return
        if not isinstance(tokens, list) or not tokens:
            raise ConfigError.of("alora_invocation_tokens", tokens, "a list of at least one token id, or None")
        for name, allowed in (("use_dora", False), ("lora_bias", False), ("bias", "none")):
            if getattr(self, name) != allowed:
                hint = "Activated LoRA adapts single tokens, and nothing for all of them."
                raise ConfigError.of(name, getattr(self, name), f"{allowed!r} with alora_invocation_tokens", hint)
        if self.anchored:
            raise ConfigError.of(
                "init_lora_weights",
                self.init_lora_weights,
                "one that leaves the weight as it is, with alora_invocation_tokens",
                "In peft's files these inits go with another base weight, for all tokens.",
            )

    @property
    def variant(self) -> str:
        if self.alora_invocation_tokens is not None:
            return "alora"
        return "dora" if self.use_dora else "bias" if self.lora_bias else ""

    @property
    def per_call(self) -> Callable[[Call], Tensor] | None:
        tokens = self.alora_invocation_tokens
        return None if tokens is None else functools.partial(spans, tokens)

    @property
    def anchored(self) -> bool:
        """Whether the adapter starts from W itself, so that a frozen B0 A0 is taken out again."""
        return is_anchored(self.init_lora_weights)

    @property
    def anchor(self) -> str | None:
        """The init that says which B0 A0 a file's A and B are to be seen against; None if there is none."""
        return str(self.init_lora_weights) if self.anchored and not self.saved_plain else None

    def structure(self) -> dict[str, Any]:
        own = super().structure()  # what A and B are seen against decides what they stand for
        return {**own, "anchor": self.anchor} if self.anchor else own

    def plain(self) -> LoraConfig:
        """The config of the same update without an anchor: rank 2r, the same scales, init_lora_weights=True."""
        more = math.sqrt(2) if self.use_rslora else 2
        return self.replaced(
            r=2 * self.r,
            lora_alpha=more * self.lora_alpha,
            rank_pattern={k: 2 * v for k, v in self.rank_pattern.items()},
            alpha_pattern={k: more * v for k, v in self.alpha_pattern.items()},
            init_lora_weights=True,
            **{f"{name}_config": None for name in _PARTS},
            saved_plain=False,
        )

    def to_dict(self) -> dict[str, Any]:
        if self.saved_plain:
            return self.plain().to_dict()
        data = super().to_dict()
        return {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in data.items()}  # type: ignore[arg-type]

    def rank(self, path: str) -> int:
        """The rank r of the adapter at `path`."""
        return int(pattern_value(self.rank_pattern, path, self.r, "rank_pattern"))

    def scale(self, path: str) -> float:
        """The scale s of the adapter at `path`."""
        alpha, r = self.alpha(path), self.rank(path)
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def alpha(self, path: str) -> float:
        """The strength alpha of the adapter at `path`."""
        return pattern_value(self.alpha_pattern, path, self.lora_alpha, "alpha_pattern")

    def note(self, heads: Collection[str], hosts: Sequence[Any]) -> None:
        super().note(heads, hosts)
        self.saved_plain = self.init_lora_weights in FROM_DATA  # the file has no data to find the anchor again

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        if self.alora_invocation_tokens is not None and is_encoder_decoder(modules[""]):
            raise ConfigError.of(
                "alora_invocation_tokens",
                self.alora_invocation_tokens,
                "None for an encoder-decoder model",
                "Its decoder's tokens are not those that the invocation is looked for in.",
            )
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
        embedding = end_of(root, "input")
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
