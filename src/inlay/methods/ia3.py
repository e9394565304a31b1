"""(IA)^3, activations scaled by learned vectors (Liu et al. 2022, arXiv 2205.05638): y = l * (W x + b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from inlay.checks import check_bool, check_names
from inlay.core.adapter import Adapter
from inlay.core.host import Site
from inlay.core.regex import within_limits
from inlay.core.targets import matches_name, meant_by
from inlay.errors import ConfigError, TargetError
from inlay.methods.layout import LayoutConfig
from inlay.methods.targets import IA3
from inlay.registry import adapter


@dataclass
class IA3Config(LayoutConfig, peft_type="IA3"):
    r"""y = l * (W x + b), in feed-forward layers y = W (l * x) + b.   l: (out,), there (in,)

    Without `target_modules` these are keys, values and the second layer of the feed-forward block, as in the paper; for
    the model types that peft has a default for, peft's, which for some takes the queries too, or instead of the keys.

    Args:
        feedforward_modules: those targets whose input is scaled, named as in `target_modules`, or by a regular
            expression; None takes the model type's default. A name also means the modules that end in it in mid-word,
            as in peft.
        init_ia3_weights: True: l is 1, the identity. False: normal, for tests.

    Raises:
        ConfigError: a field has a value that is not allowed.
        TargetError, when an adapter is added: an entry of `feedforward_modules` means none of the targets.
    """

    feedforward_modules: list[str] | str | None = None
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("init_ia3_weights", self.init_ia3_weights)
        self.feedforward_modules = inner = check_names("feedforward_modules", self.feedforward_modules)
        if isinstance(inner, list) and isinstance(self.target_modules, list):
            strangers = [name for name in inner if name not in self.target_modules]
            if strangers:
                raise ConfigError.of(
                    "feedforward_modules",
                    inner,
                    f"some of target_modules={self.target_modules!r}",
                    f"Add {', '.join(map(repr, strangers))} to target_modules: feedforward_modules only says which of "
                    "the targets have their input scaled.",
                )

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return IA3.get(model_type or "", (None,))[0]

    def settle(self, model_type: str | None, targets: Sequence[str], aliases: Callable[[], Mapping[str, str]]) -> None:
        """Writes `feedforward_modules` in the words of `target_modules`, which may have changed to today's names."""
        inner = self._inner(model_type, targets, aliases)
        wanted, given = self.target_modules, self.feedforward_modules
        part = not isinstance(given, list) or not isinstance(wanted, list) or set(given) <= set(wanted)
        if given is not None and part and inner == set(filter(self.scales_input, targets)):
            return
        self.feedforward_modules = [p for p in targets if p in inner]
        if isinstance(wanted, list):
            means = {name: {p for p in targets if matches_name(p, name)} for name in wanted}
            names = [name for name, paths in means.items() if paths and paths <= inner]
            if inner == {p for p in targets if p.endswith(tuple(names))}:
                self.feedforward_modules = names
            else:  # no name is short for them alone
                self.target_modules = list(targets)

    def _inner(self, model_type: str | None, targets: Sequence[str], aliases: Callable[[], Any]) -> set[str]:
        """Those of the targets whose input is scaled."""
        given = self.feedforward_modules
        if given is None:  # those of the default that are among the targets, if any
            if model_type not in IA3:
                raise ConfigError.of(
                    "feedforward_modules",
                    None,
                    "names of those targets whose input is scaled, or [] if there are none",
                    "There is no default for this model.",
                )
            default = IA3[model_type][1]
            if isinstance(default, str):
                return set(filter(within_limits(default, "feedforward_modules"), targets))
            return {p for p in targets if p.endswith(tuple(default))}
        try:
            return set(meant_by(given, "feedforward_modules", targets, aliases, str.endswith)[0])
        except TargetError as error:
            if not isinstance(error.value, list):  # no regular expression at all
                raise
            shown = ", ".join(targets[:8]) + (", ..." if len(targets) > 8 else "")
            raise TargetError(
                f"feedforward_modules: {', '.join(map(repr, error.value))} means none of the modules that are targeted "
                f"({shown}). It says which of the targets have their input scaled: take it out, or target such modules "
                "too.",
                "feedforward_modules",
                error.value,
            ) from None

    def scales_input(self, path: str) -> bool:
        """Whether the module at `path`, a target, has its input scaled rather than its output."""
        inner = self.feedforward_modules or []
        if isinstance(inner, str):
            return within_limits(inner, "feedforward_modules")(path)
        return path.endswith(tuple(inner))


@adapter(IA3Config, "linear", "conv1d", "conv2d", "conv3d")
class IA3Scale(Adapter):
    r"""W' = diag(l) W, b' = l * b, so that y = l * (W x + b); in feed-forward layers W' = W diag(l), y = W (l * x) + b.

    x: (..., in)   W: (out, in)   b: (out,)   l: (out,), in feed-forward layers (in,); starts at 1

    On convolutions l scales channels; with groups, W: (out, in / g, *k) has each group's part of l on its columns.
    """

    def __init__(self, config: IA3Config, site: Site):
        super().__init__(config, site)
        self.inner, self.random = config.scales_input(site.path), not config.init_ia3_weights
        host: Any = site.module
        count = site.in_features if self.inner else site.out_features
        if site.kind == "linear":
            self.groups, self.spread = 1, 0
            shape: tuple[int, ...] = (1, count) if self.inner else (count, 1)
        else:
            self.groups, self.spread = host.groups, int(site.kind[4])
            shape = (1, count, *[1] * self.spread)
        self.l = self.parameter(site, *shape)

    def reset(self, host: nn.Module) -> None:
        if self.random:
            nn.init.normal_(self.l)
        else:
            nn.init.ones_(self.l)

    def weight(self, w: Tensor) -> Tensor:
        scale = self.l.to(w.dtype).flatten()
        if not self.inner:
            return scale.view(-1, *[1] * (w.dim() - 1)) * w
        g = self.groups  # each group's outputs see its own inputs
        columns = w.reshape(g, w.shape[0] // g, *w.shape[1:])
        return (columns * scale.view(g, 1, -1, *[1] * self.spread)).reshape(w.shape)

    def bias(self, b: Tensor | None) -> Tensor | None:
        return b if b is None or self.inner else self.l.to(b.dtype).flatten() * b

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        scale = self.l.view(-1, *[1] * self.spread)
        if self.inner:
            return base(x * scale.to(x.dtype), *args, **kwargs)
        y = base(x, *args, **kwargs)
        return y * scale.to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"ia3_l": self.l}
