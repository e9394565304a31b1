"""Weighted sums of LoRA adapters: against the sum of their changes, and against peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import IA3Config, LoraConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, StateError
from tests.parity import DEPRECATED
from tests.tiny import close, ids, llama, net, same, scramble, snapshot

WEIGHTS = [0.7, -0.4]


def view_of(base: Any, **second: Any) -> Any:
    first = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    view = get_peft_model(base, LoraConfig(**first), "a")
    view.add_adapter("b", LoraConfig(**{**first, "r": 3, "use_rslora": True, **second}))
    return scramble(view, 0.5)


def changes(view: Any, name: str) -> dict[str, torch.Tensor]:
    zero = {p: torch.zeros_like(view._inlay.hosts[p].weight) for p in view._inlay.placed[name]}
    return {path: a.weight(zero[path]) for path, a in view._inlay.placed[name].items()}


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["v_proj", "down_proj", "embed_tokens"]], ids=str)
def test_the_sum_is_the_sum_of_the_changes(kind: str, targets: list[str], tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    view = view_of(base, target_modules=targets)
    before = snapshot(base)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", combination_type=kind, svd_rank=9)
    mine, parts = changes(view, "sum"), [changes(view, name) for name in ("a", "b")]
    for path, found in mine.items():
        want = sum(w * part[path] for w, part in zip(WEIGHTS, parts, strict=True) if path in part)
        close(found, want, 1e-6, 1e-6)
    assert set(mine) == set(parts[0]) | set(parts[1])
    assert view.active_adapters == ["a"] and same(snapshot(base), before)
    view.set_adapter("sum")
    y = view(ids()).logits
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    close(PeftModel.from_pretrained(base, str(tmp_path / "sum"))(ids()).logits, y, 1e-6, 1e-6)


def test_one_adapter_at_weight_one_is_that_adapter() -> None:
    view = view_of(llama(dtype=torch.float64), rank_pattern={"v_proj": 4}, alpha_pattern={"q_proj": 5})
    for kind in ("cat", "svd"):
        view.add_weighted_adapter(["b"], [1.0], kind, combination_type=kind, svd_rank=4)
        for path, found in changes(view, kind).items():
            close(found, changes(view, "b")[path], 1e-6, 1e-6)


def test_an_svd_of_lower_rank_is_the_best_one() -> None:
    view = view_of(llama(dtype=torch.float64))
    view.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    for path, found in changes(view, "sum").items():
        exact = changes(view, "a")[path] + changes(view, "b")[path]
        u, s, v = torch.linalg.svd(exact)
        close(found, u[:, :3] * s[:3] @ v[:3], 1e-6, 1e-6)


@pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_as_peft(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", minversion="0.21.2")
    base = llama()
    view = view_of(base, use_rslora=False, r=2)
    view.save_pretrained(str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "a"), "a").eval()
    theirs.load_adapter(str(tmp_path / "b"), "b")
    theirs.base_model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "sum", combination_type=kind)
    theirs.set_adapter("sum")
    view.add_weighted_adapter(["a", "b"], [0.7, 0.4], "sum", combination_type=kind)
    view.set_adapter("sum")
    torch.testing.assert_close(view.eval()(ids()).logits, theirs(ids()).logits, rtol=1e-5, atol=1e-5)


def test_what_has_no_sum_is_refused_and_nothing_changes() -> None:
    view = view_of(llama())
    view.add_adapter("ia3", IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    view.add_adapter("dora", LoraConfig(target_modules=["q_proj"], use_dora=True))
    names = list(view.peft_config)
    cases: list[tuple[Any, type[Exception], str]] = [
        (
            (["a", "b"], [1.0], "sum"),
            ConfigError,
            r"weights=\[1.0\] is not allowed: expected one number",
        ),
        ((["a"], [float("nan")], "sum"), ConfigError, "weights=nan"),
        ((["a"], [1.0], "b"), ConfigError, "adapter_name='b' is not allowed"),
        ((["c"], [1.0], "sum"), StateError, "There is no adapter 'c'"),
        ((["ia3"], [1.0], "sum"), ConfigError, "plain LoRA adapters: their sum is a LoRA"),
        ((["a", "dora"], [1.0, 1.0], "sum"), ConfigError, "it is DoraLinear"),
    ]
    for args, error, message in cases:
        with pytest.raises(error, match=message):
            view.add_weighted_adapter(*args)
    with pytest.raises(ConfigError, match="combination_type='ties' is not allowed: expected one of 'cat', 'svd'"):
        view.add_weighted_adapter(["a"], [1.0], "sum", combination_type="ties")
    assert list(view.peft_config) == names


def test_convolutions_and_embeddings() -> None:
    base = net(dtype=torch.float64)
    targets = ["conv2", "conv3", "embed", "fc"]
    view = get_peft_model(base, LoraConfig(r=2, target_modules=targets), "a")
    view.add_adapter("b", LoraConfig(r=1, target_modules=targets))
    scramble(view, 0.5)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", combination_type="cat")
    for path, found in changes(view, "sum").items():
        close(found, sum(w * changes(view, n)[path] for w, n in zip(WEIGHTS, "ab", strict=True)), 1e-6, 1e-6)
    with pytest.raises(ConfigError, match="has groups"):
        get_peft_model(net(), LoraConfig(r=2, target_modules=["conv1"]), "a").add_weighted_adapter(["a"], [1.0], "b")
