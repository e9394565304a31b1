"""Random sequences of calls on one view, against a model of it in ten lines."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import LoraConfig, get_peft_model
from inlay.core.adapted import is_adapted
from inlay.errors import InlayError
from tests.tiny import close, made, same, scramble, snapshot

NAMES = ["a", "b", "c"]
PATHS = {"a": ["0", "1"], "b": ["0"], "c": ["1"]}
X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Oracle:
    """Which adapters count, and W + s B A for those that do."""

    def __init__(self, base: nn.Sequential) -> None:
        self.weights = [layer.weight.detach().clone() for layer in base]  # type: ignore[union-attr]
        self.biases = [layer.bias.detach().clone() for layer in base]  # type: ignore[union-attr]
        self.deltas: dict[str, dict[str, Tensor]] = {}
        self.active: list[str] = []
        self.merged: list[str] = []

    def __call__(self, x: Tensor, names: list[str] | None = None) -> Tensor:
        names = [*self.merged, *(n for n in self.active if n not in self.merged)] if names is None else names
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ sum((self.deltas[n][str(i)] for n in names if str(i) in self.deltas[n]), weight).T + bias
        return x


def note(view: Any, oracle: Oracle, name: str) -> None:
    """Tells the oracle what adapter `name` is."""
    placed = view._inlay.placed[name]
    oracle.deltas[name] = {path: (a.scale * a.B @ a.A).detach() for path, a in placed.items()}


@pytest.mark.parametrize("seed", range(40))
def test_any_sequence_of_calls(seed: int) -> None:
    choose = random.Random(seed)
    base = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), seed, torch.float64)
    before, oracle = snapshot(base), Oracle(base)

    def config(name: str) -> LoraConfig:
        return LoraConfig(target_modules=PATHS[name], r=choose.choice([1, 2]), lora_alpha=3)

    view = scramble(get_peft_model(base, config("a"), "a"), seed=seed)
    note(view, oracle, "a")
    oracle.active = ["a"]

    def add(name: str) -> None:
        view.add_adapter(name, config(name))
        for adapter in view._inlay.placed[name].values():
            nn.init.normal_(adapter.A), nn.init.normal_(adapter.B)
        note(view, oracle, name)

    def activate(names: list[str]) -> None:
        view.set_adapter(names, inference_mode=True)
        oracle.active = names

    def merge(names: list[str]) -> None:
        view.merge_adapter(names)
        oracle.merged = oracle.merged + names

    def unmerge() -> None:
        view.unmerge_adapter()
        oracle.merged = []

    def delete(name: str) -> None:
        view.delete_adapter(name)
        oracle.active = [n for n in oracle.active if n != name]
        del oracle.deltas[name]

    def duplicate() -> None:
        nonlocal view
        view = copy.deepcopy(view) if choose.random() < 0.5 else pickle.loads(pickle.dumps(view))

    refused = 0
    for _ in range(25):
        some = choose.sample(NAMES, choose.randint(0, 3))
        call = choose.choice(
            [
                lambda: add(choose.choice(NAMES)),
                lambda some=some: activate(some),
                lambda some=some: merge(some),
                unmerge,
                lambda: delete(choose.choice(NAMES)),
                duplicate,
            ]
        )
        state = oracle.active, oracle.merged, dict(oracle.deltas)
        try:
            call()
        except InlayError:
            refused += 1
            assert (oracle.active, oracle.merged, oracle.deltas) == state
        close(view(X), oracle(X))
        assert view.active_adapters == oracle.active and set(view._inlay.merged) == set(oracle.merged)
        assert set(view.peft_config) == set(oracle.deltas)
        with view.disable_adapter():
            close(view(X), oracle(X, []))
        close(view(X), oracle(X))
        if not oracle.merged and oracle.deltas:
            rows = choose.choices([*oracle.deltas, "__base__"], k=3)
            expected = [oracle(X[i : i + 1], [] if n == "__base__" else [n]) for i, n in enumerate(rows)]
            close(view(X, adapter_names=rows), torch.cat(expected))
        for i, path in enumerate(("0", "1")):
            assert is_adapted(view[i]) == any(path in d for d in oracle.deltas.values())
        assert same(snapshot(view.unload()), before) and same(snapshot(base), before)
    assert refused > 0
    unmerge()
    close(view.merge_and_unload()(X), oracle(X))
