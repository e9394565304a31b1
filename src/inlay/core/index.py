"""The adapters of one model: where they sit, which are active, which are trained. O(1) per adapter and host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from inlay.config import PeftConfig
from inlay.core.active import BASE, ActiveAdapters, Call
from inlay.core.adapted import Adapted, adapt, is_adapted, place, restore
from inlay.core.adapter import Adapter
from inlay.core.gather import check_cut_alike
from inlay.core.plan import Placement
from inlay.errors import ConfigError, StateError, did_you_mean


class AdapterIndex:
    """Book-keeping for all adapters of a model. Every operation touches only the adapters it names.

    Attributes:
        configs: name -> config.
        placed: name -> (path of host -> adapter).
        hosts: path -> adapted module.
        active: the object all hosts read.
        trainable: names whose parameters require gradients.
        merged: names that are merged into the weights at present, in that order (`inlay.merge.weights` sets it).
        report: what the last of those merges rounded away, in quantised layers (likewise).
    """

    def __init__(self, mixin: type[Adapted] = Adapted) -> None:
        self.mixin = mixin  # of the classes that hosts get
        self.configs: dict[str, PeftConfig] = {}
        self.placed: dict[str, dict[str, Adapter]] = {}
        self.hosts: dict[str, nn.Module] = {}
        self.active = ActiveAdapters(self)
        self.trainable: set[str] = set()
        self.merged: list[str] = []
        self.report: Any = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.active.belong_to(self)

    def add(self, name: str, config: PeftConfig, placements: Sequence[Placement]) -> None:
        """Puts planned adapters in place, inactive and frozen."""
        for p in placements:
            if not is_adapted(p.host):
                adapt(p.host, self.active, self.mixin)
            self.hosts[p.path] = p.host
            place(p.host, name, p.adapter)
        self.configs[name] = config
        self.placed[name] = {p.path: p.adapter for p in placements}

    def remove(self, name: str) -> None:
        """Takes an adapter out; hosts left without any become plain modules again."""
        self.require(name)
        if self.is_merged(name):
            raise StateError(f"Adapter {name!r} is merged into the weights: call unmerge_adapter() before deleting it.")
        for path in self.placed[name]:
            host: Any = self.hosts[path]
            del host.adapters[name]
            if not len(host.adapters):
                restore(host)
                del self.hosts[path]
        del self.placed[name], self.configs[name]
        self.trainable.discard(name)
        self.active.set([n for n in self.active.names if n != name])

    def at(self, path: str) -> AdapterIndex:
        """What this index says of one host alone, to merge there (then `count_merged`)."""
        own = AdapterIndex.__new__(AdapterIndex)
        own.__dict__.update(self.__dict__)
        own.hosts = {path: self.hosts[path]}
        own.placed = {n: {p: a for p, a in placed.items() if p == path} for n, placed in self.placed.items()}
        own.merged = [n for n, placed in own.placed.items() if any(a.merged for a in placed.values())]
        return own

    def count_merged(self) -> None:
        """Sets `merged` from what the adapters say."""
        found = [n for n, placed in self.placed.items() if any(a.merged for a in placed.values())]
        self.merged = [n for n in self.merged if n in found] + [n for n in found if n not in self.merged]

    def activate(self, names: Sequence[str]) -> None:
        """Makes `names` the active adapters. Raises StateError for unknown names and impossible combinations."""
        names = list(dict.fromkeys(names))
        self.check_together(names)
        if self.merged and tuple(names) != self.active.names:
            raise StateError(
                f"{', '.join(map(repr, self.merged))} is merged into the weights: call unmerge_adapter() before "
                "switching."
            )
        self.active.set(names)

    def check_together(self, names: Sequence[str]) -> None:
        """Raises StateError for unknown names, and for adapters of which one would make another's part in it void."""
        for name in names:
            self.require(name)
        whole = {p: n for n in names for p, a in self.placed[n].items() if a.replaces_host} if len(names) > 1 else {}
        owner: dict[object, str] = {}
        for name in names:
            for path, adapter in self.placed[name].items():
                around = [p for p in whole if path.startswith(p + ".")]
                claims = [path] if adapter.reads_weight or not adapter.mixable else []
                for claim in (*around, *claims, *map(id, adapter.replaces(self.hosts[path]))):
                    other = whole[claim] if claim in around else owner.setdefault(claim, name)
                    if other != name:
                        raise StateError(
                            f"Adapters {other!r} and {name!r} cannot be active together: both replace what is at "
                            f"{path!r}. Activate one at a time."
                        )

    def check_train(self, names: Sequence[str]) -> None:
        """Raises StateError unless `names` are adapters that can be trained as things stand."""
        for name in names:
            self.require(name)
            check_cut_alike((self.hosts[path], adapter) for path, adapter in self.placed[name].items())

    def train(self, names: Sequence[str]) -> None:
        """Makes exactly `names` require gradients."""
        self.check_train(names)
        for name in self.trainable.symmetric_difference(names):
            self.require_grad(name, name in names)
        self.trainable = set(names)

    def require_grad(self, name: str, value: bool) -> None:
        """Sets `requires_grad` of one adapter's parameters."""
        self.require(name)
        if value and self.is_merged(name):
            raise StateError(f"Adapter {name!r} is merged into the weights: call unmerge_adapter() before training it.")
        for adapter in self.placed[name].values():
            for p in adapter.parameters():
                p.requires_grad_(value and p.is_floating_point())
        (self.trainable.add if value else self.trainable.discard)(name)

    def check_trainable(self) -> None:
        """Raises StateError if an adapter that is to be trained is merged: a step would not reach it."""
        for name in self.trainable:
            if self.is_merged(name):
                raise StateError(
                    f"Adapter {name!r} is merged into the weights, so that training would not reach it: call "
                    "unmerge_adapter() to train, or eval() or torch.no_grad() to compute only."
                )

    def after_step(self, step: int) -> None:
        """Tells every adapter that is being trained that the optimizer made step number `step`."""
        for name in sorted(self.trainable):
            self.configs[name].after_step(self.placed[name], step)

    def penalty(self) -> Any:
        """What the adapters that are active and being trained add to the loss; None if nothing."""
        names = [n for n in self.active.names if n in self.trainable and not self.active.disabled]
        found = [p for n in names if (p := self.configs[n].penalty(self.placed[n])) is not None]
        return sum(found) if found else None

    def asked(self) -> dict[str, Callable[[Call], Tensor]]:
        """Name -> its config's `per_call`, of the adapters that take part in a call and have one."""
        if self.active.disabled:
            return {}
        names = self.active.names if self.active.rows is None else dict.fromkeys(self.active.rows)
        found = {n: self.configs[n].per_call for n in names if n in self.configs}
        return {n: answer for n, answer in found.items() if answer is not None}

    def tell(self, arguments: Mapping[str, Any], generates: bool = False) -> dict[str, Tensor]:
        """What the configs have to say of a call with these arguments: `Facts.told`."""
        rows, before = self.active.rows, self.active.given.told
        told = {}
        for name, answer in self.asked().items():
            mine = None if rows is None else [i for i, row in enumerate(rows) if row == name]
            told[name] = answer(Call(arguments, mine, before.get(name), generates))
        return told

    def require(self, name: str) -> None:
        """Raises StateError unless there is an adapter `name`."""
        if name not in self.configs:
            raise StateError(
                f"There is no adapter {name!r}; loaded: {', '.join(map(repr, self.configs)) or 'none'}."
                f"{did_you_mean(str(name), self.configs)}"
            )

    def is_merged(self, name: str) -> bool:
        """Whether adapter `name` is merged into the weights."""
        return name in self.merged

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """One adapter name per row of the batch (`"__base__"`: none) until the block ends."""
        for name in dict.fromkeys(names):
            if name != BASE:
                self.require(name)
        if not names:
            raise ConfigError.of("adapter_names", list(names), "one adapter name per row of the batch")
        if len(set(names)) > 1:
            for name in dict.fromkeys(n for n in names if n != BASE):
                if not all(adapter.mixable for adapter in self.placed[name].values()):
                    raise StateError(
                        f"Adapter {name!r} ({self.configs[name].peft_type}) adds virtual tokens, which the rows of one "
                        "batch cannot do each in their own way: run one batch per adapter."
                    )
        if self.merged:
            raise StateError("A batch cannot mix adapters while one is merged: call unmerge_adapter() first.")
        with self.active.switched(rows=names):
            yield


def task_heads(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that a view's task trains along, if the model has them; other models have no task."""
    found: tuple[str, ...] = getattr(type(model), "_task_heads", ())
    return found


def index_of(model: nn.Module) -> AdapterIndex:
    """The index of a view, or of a model that `inject_adapter_in_model` changed. StateError if it has none."""
    found = getattr(model, "_inlay", None)
    if not isinstance(found, AdapterIndex):
        raise StateError(
            f"This {type(model).__name__} has no adapters: get a view of it with get_peft_model(model, config)."
        )
    return found
