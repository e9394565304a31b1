"""Adapters made of others: against the sum of their changes. (Against peft: `tests/parity/test_arithmetic.py`.)"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from inlay.core.index import index_of
from inlay.errors import ConfigError, StateError
from inlay.merge.arithmetic import add_weighted_adapter
from inlay.merge.lowrank_sum import TYPES
from inlay.merge.task_arithmetic import combine
from tests.contract.cases import CASES
from tests.tiny import close, ids, llama, made, net, outline, same, scramble, snapshot

WEIGHTS = [0.7, -0.4]


def view_of(base: Any, **second: Any) -> Any:
    first = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    view = get_peft_model(base, LoraConfig(**first), "a")
    view.add_adapter("b", LoraConfig(**{**first, "r": 3, "use_rslora": True, **second}))
    return scramble(view, 0.5)


def changes(view: Any, name: str) -> dict[str, torch.Tensor]:
    zero = {p: torch.zeros_like(view._inlay.hosts[p].weight) for p in view._inlay.placed[name]}
    return {path: a.weight(zero[path]) for path, a in view._inlay.placed[name].items()}


def is_sum(view: Any, name: str, parts: list[str], weights: list[float]) -> None:
    """Raises AssertionError unless every change of `name` is the weighted sum of those of the parts."""
    mine, theirs = changes(view, name), [changes(view, part) for part in parts]
    assert set(mine) == set().union(*theirs)
    for path, found in mine.items():
        close(found, sum(w * part[path] for w, part in zip(weights, theirs, strict=True) if path in part), 1e-9, 1e-9)


def output(view: Any, name: str, x: Any = None) -> torch.Tensor:
    view.set_adapter(name)
    with torch.no_grad():
        found = view.eval()(ids() if x is None else x)
    return getattr(found, "logits", found)  # type: ignore[no-any-return]


# ------------------------------------------------------------------ sums


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["v_proj", "down_proj", "embed_tokens"]], ids=str)
def test_the_sum_is_the_sum_of_the_changes(kind: str, targets: list[str], tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    view = view_of(base, target_modules=targets)
    before = snapshot(base)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", combination_type=kind, svd_rank=9)
    is_sum(view, "sum", ["a", "b"], WEIGHTS)
    assert view.active_adapters == ["a"] and same(snapshot(base), before)
    assert not any(p.requires_grad for a in view._inlay.placed["sum"].values() for p in a.parameters())
    y = output(view, "sum")
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    again = PeftModel.from_pretrained(base, str(tmp_path / "sum"))
    close(again(ids()).logits, y)
    close(again.merge_and_unload()(ids()).logits, y)


def test_an_svd_of_lower_rank_is_the_best_one() -> None:
    view = view_of(llama(dtype=torch.float64))
    view.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    for path, found in changes(view, "sum").items():
        exact = changes(view, "a")[path] + changes(view, "b")[path]
        u, s, v = torch.linalg.svd(exact)
        close(found, u[:, :3] * s[:3] @ v[:3], 1e-9, 1e-9)


def test_linear_has_cross_terms() -> None:
    view = view_of(llama(dtype=torch.float64), r=2, use_rslora=False, lora_alpha=-4)
    view.add_weighted_adapter(["a", "b"], [0.5, 2.0], "sum", "linear")
    one, two, found = (view._inlay.placed[name]["model.layers.0.self_attn.q_proj"] for name in ("a", "b", "sum"))
    # w s is 0.5 * 3 and 2 * -2
    close(found.A, 1.5**0.5 * one.A - 4**0.5 * two.A)
    close(found.B, 1.5**0.5 * one.B + 4**0.5 * two.B)
    assert found.scale == 1


@pytest.mark.parametrize("kind", [k for k in TYPES if k not in ("cat", "svd")])
def test_methods_on_factors_and_on_changes(kind: str) -> None:
    view = view_of(llama(dtype=torch.float64), r=2, use_rslora=False)
    how: Any = {"density": 0.6, "majority_sign_method": "frequency"}
    path, method = "model.layers.0.self_attn.q_proj", kind.removesuffix("_svd")
    draws = torch.Generator().manual_seed(5)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", kind, 16, generator=draws, **how)
    one, two, found = (view._inlay.placed[name][path] for name in ("a", "b", "sum"))
    again = torch.Generator().manual_seed(5)
    if kind.endswith("svd"):
        expected = combine(method, [a.scale * a.B @ a.A for a in (one, two)], WEIGHTS, *how.values(), again)
    else:
        scales = [0.7 * one.scale, -0.4 * two.scale]
        a = combine(method, [one.A, two.A], [scales[0] ** 0.5, -(abs(scales[1]) ** 0.5)], *how.values(), again)
        b = combine(method, [one.B, two.B], [abs(s) ** 0.5 for s in scales], *how.values(), again)
        expected = b @ a
    close(found.B @ found.A, expected)


def test_dare_draws_from_the_generator_it_is_given() -> None:
    view = view_of(llama(), r=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        generator = torch.Generator().manual_seed(seed)
        view.add_weighted_adapter(["a", "b"], WEIGHTS, name, "dare_linear_svd", density=0.5, generator=generator)
        view.delete_adapter(name) if name == "y" else None
    a, c = (changes(view, name) for name in "xz")
    assert not any(torch.equal(a[path], c[path]) for path in a)
    torch.set_rng_state(state)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "y", "dare_linear_svd", density=0.5)
    torch.set_rng_state(state)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "again", "dare_linear_svd", density=0.5)
    assert all(torch.equal(changes(view, "y")[path], found) for path, found in changes(view, "again").items())


@pytest.mark.parametrize("kind", TYPES)
def test_convolutions_with_groups_and_embeddings(kind: str) -> None:
    base = net(dtype=torch.float64)
    targets = ["conv1", "conv2", "conv3", "embed", "fc"]
    view = get_peft_model(base, LoraConfig(r=2, target_modules=targets), "a")
    view.add_adapter("b", LoraConfig(r=2, lora_alpha=3, target_modules=targets))
    scramble(view, 0.5)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", kind, svd_rank=64, density=1.0)
    if kind == "cat" or (kind.endswith("svd") and "ties" not in kind):  # nothing is left out at a density of 1
        is_sum(view, "sum", ["a", "b"], WEIGHTS)
    merged = copy.deepcopy(view)
    merged.set_adapter("sum")
    close(merged.merge_and_unload()(ids()), output(view, "sum"))


def test_ranks_by_layer(tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    view = view_of(base, rank_pattern={"v_proj": 4}, alpha_pattern={"q_proj": 5}, layers_to_transform=[1])
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", "cat")
    is_sum(view, "sum", ["a", "b"], WEIGHTS)
    ranks = {path: a.r for path, a in view._inlay.placed["sum"].items()}
    assert sorted(ranks.values()) == [2, 2, 5, 6]
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    saved = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert saved["r"] == saved["lora_alpha"] == 6 and saved["target_modules"] == ["q_proj", "v_proj"]
    assert saved["rank_pattern"] == saved["alpha_pattern"] and len(saved["rank_pattern"]) == 3
    close(PeftModel.from_pretrained(base, str(tmp_path / "sum"))(ids()).logits, output(view, "sum"))


@pytest.mark.parametrize("kind", ["cat", "svd", "linear", "ties", "dare_ties_svd"])
def test_trained_shifts_of_biases(kind: str, tmp_path: Path) -> None:
    base = llama(dtype=torch.float64, attention_bias=True)
    view = view_of(base, r=2, lora_bias=True)
    view.add_adapter("c", LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj"], lora_bias=True))
    scramble(view, 0.3)
    draws = torch.Generator().manual_seed(2)
    view.add_weighted_adapter(["a", "b", "c"], [0.7, -0.4, 2.0], "sum", kind, 16, density=1.0, generator=draws)
    path = "model.layers.0.self_attn.q_proj"
    two, three, found = (view._inlay.placed[name][path] for name in ("b", "c", "sum"))
    shifts = [two.scale * two.c, three.scale * three.c]
    expected = combine(found_method(kind), shifts, [-0.4, 2.0])
    close(found.scale * found.c, expected)
    if kind in ("cat", "svd", "linear"):
        close(found.scale * found.c, -0.4 * shifts[0] + 2.0 * shifts[1])
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    close(PeftModel.from_pretrained(base, str(tmp_path / "sum"))(ids()).logits, output(view, "sum"))


def found_method(kind: str) -> str:
    return {"cat": "linear", "svd": "linear"}.get(kind, kind.removesuffix("_svd"))


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_anchored_adapters_enter_with_their_whole_update(kind: str, tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    view = view_of(base, init_lora_weights="pissa")
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", kind, svd_rank=8)
    is_sum(view, "sum", ["a", "b"], WEIGHTS)
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    close(PeftModel.from_pretrained(base, str(tmp_path / "sum"))(ids()).logits, output(view, "sum"))


@pytest.mark.parametrize("fields", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 5]}], ids=str)
def test_what_one_adapter_trains_in_full_comes_along(fields: dict[str, Any], tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    view = view_of(base, **fields)
    view.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", "cat")
    (path,) = set(view._inlay.placed["b"]) - set(view._inlay.placed["a"])
    mine, theirs = (view._inlay.placed[name][path].state_dict() for name in ("sum", "b"))
    assert same(mine, theirs) and mine
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    close(PeftModel.from_pretrained(base, str(tmp_path / "sum"))(ids()).logits, output(view, "sum"))
    view.add_adapter("c", LoraConfig(target_modules=["q_proj"], **fields))
    with pytest.raises(ConfigError, match=rf"'b' and 'c' both train '{path}', which has no sum"):
        view.add_weighted_adapter(["a", "b", "c"], [1.0, 1.0, 1.0], "other", "cat")
    view.add_adapter("d", LoraConfig(target_modules=[path]))
    with pytest.raises(ConfigError, match=rf"'b' trains '{path}', and 'd' changes '{path}'"):
        view.add_weighted_adapter(["d", "b"], [1.0, 1.0], "other", "cat")


def test_models_changed_in_place() -> None:
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["fc"]), net(dtype=torch.float64), "a")
    view: Any = type("Holder", (), {"_inlay": index_of(model)})
    scramble(view, 0.5)
    add_weighted_adapter(model, ["a", "a"], [1.0, -0.5], "part", "cat")
    is_sum(view, "part", ["a"], [0.5])


def test_adapters_in_16_bits_stay_so() -> None:
    base = llama(dtype=torch.bfloat16)
    view = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]), "a", autocast_adapter_dtype=False)
    view.add_weighted_adapter(["a", "a"], [1.0, -0.5], "sum", "svd")
    assert {p.dtype for a in view._inlay.placed["sum"].values() for p in a.parameters()} == {torch.bfloat16}


def test_it_is_a_method_of_base_model_too() -> None:
    view = view_of(llama())
    view.base_model.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", "svd", 5, None, True, None, None, "total")
    view.base_model.add_weighted_adapter(adapters=["a", "b"], weights=WEIGHTS, adapter_name="other", svd_rank=5)
    assert all(torch.equal(found, changes(view, "sum")[path]) for path, found in changes(view, "other").items())


# ------------------------------------------------------------------ one adapter


EVERY_METHOD = [
    pytest.param(config, make, id=f"{config.__name__}-{case}")
    for config, cases in CASES.items()
    for case, make in cases.items()
]
TARGETS = {"LN_TUNING": ["input_layernorm"], "BOTTLENECK": ["mlp"], "IA3": ["q_proj", "down_proj"]}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_dora": True, "use_rslora": False},
        {"lora_bias": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"q_proj": 5}, "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_one_adapter_at_weight_one_is_that_adapter(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    view = view_of(base, **fields)
    view.add_weighted_adapter(["b"], [1.0], "copy", combination_type=kind, svd_rank=1)
    assert view.peft_config["copy"] == view.peft_config["b"] and view.peft_config["copy"] is not view.peft_config["b"]
    for path, source in view._inlay.placed["b"].items():
        assert same(view._inlay.placed["copy"][path].state_dict(), source.state_dict())
    expected = output(view, "b")
    assert torch.equal(output(view, "copy"), expected)
    scramble(view, 0.5)  # it is a copy
    assert not torch.equal(output(view, "copy"), expected)
    if kind == "svd":
        view.save_pretrained(str(tmp_path), selected_adapters=["copy"])
        again = PeftModel.from_pretrained(base, str(tmp_path / "copy"))
        torch.testing.assert_close(again(ids()).logits, output(view, "copy"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "make"), EVERY_METHOD)
def test_of_any_method_one_adapter_at_weight_one_is_that_adapter(config: Any, make: Any) -> None:
    base = llama(attention_bias=True)
    targets: dict[str, Any] = {"target_modules": TARGETS.get(config.peft_type, ["q_proj", "k_proj"])}
    if not hasattr(config, "target_modules") or config.peft_type in ("BITFIT", "TRAINABLE_TOKENS", "ADAPTION_PROMPT"):
        targets = {}
    view = scramble(get_peft_model(base, make(task_type="CAUSAL_LM", **targets), "one"), 0.3)
    own = {id(p) for p in base.parameters()}
    view.add_weighted_adapter(["one"], [1], "copy", "ties")
    expected = output(view, "one")
    assert torch.equal(output(view, "copy"), expected)
    with view.disable_adapter():
        assert not torch.equal(view(ids()).logits, expected)
    one, two = ({id(p) for a in view._inlay.placed[n].values() for p in a.parameters()} for n in ("one", "copy"))
    assert not one & two and not two & own


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("weight", [0.5, -1.5, 0])
def test_a_multiple_of_one_adapter(kind: str, weight: float, tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    for fields in ({"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"q_proj": 5}}, {"init_lora_weights": "pissa"}):
        view = view_of(base, **fields)
        view.add_weighted_adapter(["b"], [weight], "part", combination_type=kind, svd_rank=1)
        is_sum(view, "part", ["b"], [weight])
        view.save_pretrained(str(tmp_path), selected_adapters=["part"])
        again = PeftModel.from_pretrained(base, str(tmp_path / "part"))
        close(again(ids()).logits, output(view, "part"))


# ------------------------------------------------------------------ IA3


def test_ia3(tmp_path: Path) -> None:
    base = llama(dtype=torch.float64)
    view = get_peft_model(
        base, IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]), "a"
    )
    view.add_adapter("b", IA3Config(target_modules=["down_proj", "v_proj"], feedforward_modules=[]))
    view.add_adapter("c", IA3Config(target_modules=["down_proj", "v_proj"], feedforward_modules=["down_proj"]))
    scramble(view, 0.5)
    view.add_weighted_adapter(["a", "c"], [0.25, 0.5], "sum")
    a, c, found = (view._inlay.placed[name] for name in ("a", "c", "sum"))
    for path, adapter in found.items():
        expected = sum(w * (placed[path].l if path in placed else 1) for w, placed in ((0.25, a), (0.5, c)))
        close(adapter.l, expected)
    assert set(found) == set(a) | set(c)
    view.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    again = PeftModel.from_pretrained(base, str(tmp_path / "sum"))
    close(again(ids()).logits, output(view, "sum"))
    close(again.merge_and_unload()(ids()).logits, output(view, "sum"))
    view.add_weighted_adapter(["a"], [0.5], "part")
    assert view.peft_config["part"].target_modules == ["q_proj", "down_proj"]
    close(view._inlay.placed["part"]["model.layers.1.mlp.down_proj"].l, 0.5 * a["model.layers.1.mlp.down_proj"].l)
    message = r"At 'model.layers.0.mlp.down_proj' one of 'a' and 'b' scales the input, the other the output"
    with pytest.raises(ConfigError, match=message):
        view.add_weighted_adapter(["a", "b"], [1.0, 1.0], "other")


# ------------------------------------------------------------------ refusals


def several() -> Any:
    view = view_of(llama())
    view.add_adapter("ia3", IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    view.add_adapter("dora", LoraConfig(target_modules=["q_proj"], use_dora=True))
    view.add_adapter("alora", LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[1]))
    view.add_adapter("ada", AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    view.add_adapter("tokens", LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1]))
    view.add_adapter("biases", LoraConfig(target_modules=["q_proj"], bias="all"))
    return view


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"weights": [1.0]},
        ConfigError,
        r"weights=\[1.0\] is not allowed: expected one number for each of the 2 adapters",
    ),
    ({"weights": [1.0, float("nan")]}, ConfigError, "weights=nan is not allowed: expected a finite number"),
    ({"weights": [1.0, "2"]}, ConfigError, "weights='2' is not allowed"),
    ({"adapters": "ab"}, ConfigError, "adapters='ab' is not allowed: expected a list of at least one adapter's name"),
    ({"adapters": [], "weights": []}, ConfigError, "adapters=.. is not allowed"),
    ({"adapter_name": "b"}, ConfigError, "adapter_name='b' is not allowed: expected a name not in use"),
    ({"adapters": ["a", "zz"]}, StateError, "There is no adapter 'zz'"),
    ({"combination_type": "tie"}, ConfigError, "combination_type='tie' is not allowed.* Did you mean 'ties'"),
    ({"svd_rank": 0}, ConfigError, "svd_rank=0 is not allowed: expected an integer of at least 1"),
    ({"svd_clamp": 2}, ConfigError, "svd_clamp=2 is not allowed: expected a finite number from 0 to 1"),
    ({"svd_full_matrices": None}, ConfigError, "svd_full_matrices=None is not allowed"),
    ({"svd_driver": "qr"}, ConfigError, "svd_driver='qr' is not allowed: expected one of None, 'gesvd'"),
    (
        {"majority_sign_method": "all"},
        ConfigError,
        "majority_sign_method='all' is not allowed: expected one of 'total'",
    ),
    ({"generator": 3}, ConfigError, "generator=3 is not allowed: expected a torch.Generator or None"),
    ({"combination_type": "ties_svd"}, ConfigError, "density=None is not allowed: expected a number from 0 to 1 with"),
    (
        {"combination_type": "dare_linear_svd", "density": 0},
        ConfigError,
        "density=0 is not allowed: expected a number above 0 and at most 1 with combination_type='dare_linear_svd'",
    ),
    ({"density": 1.5}, ConfigError, "density=1.5 is not allowed: expected a finite number from 0 to 1"),
    (
        {"combination_type": "linear"},
        ConfigError,
        r"'_svd', which|for adapters of different ranks. At 'model.layers.0.self_attn.q_proj' these are 'a': 2, 'b': 3",
    ),
    ({"adapters": ["a", "ia3"]}, ConfigError, "'ia3' is IA3. If it is a change of weights, convert it first with"),
    ({"adapters": ["ia3", "a"]}, ConfigError, "'a' is LORA"),
    ({"adapters": ["ada", "a"]}, ConfigError, "'ada' is ADALORA. .* convert it first with inlay.convert_to_lora"),
    ({"adapters": ["ada"], "weights": [2]}, ConfigError, "LoRA adapters only, or IA3 adapters only, at other weights"),
    ({"adapters": ["a", "dora"]}, ConfigError, "adapters='dora' .* At 'model.layers.0.self_attn.q_proj' it is Dora"),
    ({"adapters": ["dora"], "weights": [0.5]}, ConfigError, "it is DoraLinear, .* it can be added alone, at weight 1"),
    ({"adapters": ["a", "alora"]}, ConfigError, "it is ALoraLinear"),
    ({"adapters": ["a", "biases"]}, ConfigError, "'biases' has bias='all', trainable_token_indices=None"),
    ({"adapters": ["biases"], "weights": [0.5]}, ConfigError, "Alone, at weight 1, any adapter is copied"),
    ({"adapters": ["a"], "weights": [1e6]}, ConfigError, "lora_alpha=6000000.0 is not allowed"),
]


@pytest.mark.parametrize(("changed", "error", "message"), REFUSED, ids=[str(c) for c, _, _ in REFUSED])
def test_what_has_no_sum_is_refused_and_nothing_changes(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    view = several()
    before = outline(view)
    with pytest.raises(error, match=message):
        view.add_weighted_adapter(**{"adapters": ["a", "b"], "weights": [1.0, 1.0], "adapter_name": "sum", **changed})
    assert outline(view) == before and "sum" not in view.peft_config


@pytest.mark.parametrize("names", [["a"], ["a", "b"]], ids=str)
def test_while_one_is_merged_none_is_added(names: list[str]) -> None:
    view = view_of(llama())
    view.merge_adapter()
    with pytest.raises(StateError, match=r"\['a'\] is merged into the weights: call unmerge_adapter\(\) before adding"):
        view.add_weighted_adapter(names, [1.0] * len(names), "sum")
    assert list(view.peft_config) == ["a", "b"]


def test_heads_of_a_classifier_have_no_sum() -> None:
    base = llama(cls="LlamaForSequenceClassification", num_labels=3)
    view = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]), "a")
    view.add_adapter("b", LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="'a' and 'b' both train 'score'"):
        view.add_weighted_adapter(["a", "b"], [0.5, 0.5], "sum")
    scramble(view, 0.3)
    view.add_weighted_adapter(["a"], [0.5], "part")  # the head as it is
    one, half = (view._inlay.placed[name]["score"].state_dict() for name in ("a", "part"))
    assert same(one, half)


def test_paths_that_end_in_one_another() -> None:
    class Nested(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)
            self.sub = torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 4), "other": torch.nn.Linear(4, 4)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sub["other"](self.sub["fc"](self.fc(x)))  # type: ignore[no-any-return]

    view = get_peft_model(made(Nested), LoraConfig(r=1, target_modules=["fc"], exclude_modules=["sub.fc"]), "a")
    view.add_adapter("b", LoraConfig(r=2, target_modules=["other"]))
    scramble(view, 0.5)
    view.add_weighted_adapter(["a", "b"], [1.0, 2.0], "sum", "cat")
    assert {path: a.r for path, a in view._inlay.placed["sum"].items()} == {"fc": 1, "sub.other": 2}
