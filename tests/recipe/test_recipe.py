"""Recipes: read, checked, completed; every fault is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inlay.errors import ConfigError, MissingFileError
from inlay.io.plain import parse_yaml
from inlay.recipe.recipe import Recipe, flat, methods

LEAST = {"model.name": "m", "data.train": "d.jsonl", "out": "runs/x"}


def make(**changes: Any) -> Recipe:
    return Recipe.make({**LEAST, **changes})


def test_a_file_is_read_and_keys_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: {name: m}\nadapter: {method: LoRA, r: 4, rank_pattern: {q_proj: 2}}\n"
        "data: {train: d.jsonl, eval: 0.1}\ntrain: {lr: 1e-4, batch: 8}\nout: runs/x\n"
    )
    recipe = Recipe.load(file, {"train.batch": 2, "train.seed": 7})
    assert recipe.train.lr == 1e-4 and recipe.train.batch == 2 and recipe.train.seed == 7 and recipe.data.eval == 0.1
    assert recipe.adapter.method == "lora"
    assert recipe.adapter.fields == {
        "r": 4,
        "lora_alpha": 32,
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2},
    }


def test_the_resolved_recipe_has_every_key_and_is_a_recipe() -> None:
    resolved = make(**{"data.eval": 0.1}).resolved()
    assert resolved["train"]["lr"] == 2e-4 and resolved["train"]["eval_every"] == resolved["train"]["save_every"]
    again = Recipe.make(resolved)
    assert again.resolved() == resolved and again.changes(resolved) == []


def test_the_learning_rate_is_the_methods() -> None:
    rates = [make(**{"adapter.method": m}).learning_rate for m in ("lora", "full", "ia3", "prompt_tuning")]
    assert rates == [2e-4, 2e-5, 3e-3, 1e-2]
    assert make(**{"train.lr": 1}).learning_rate == 1


@pytest.mark.parametrize("method", methods())
def test_every_registered_method_is_one_of_a_recipe(method: str) -> None:
    needed = {"trainable_tokens": {"adapter.token_indices": [1]}, "adaption_prompt": {}}.get(method, {})
    recipe = make(**{"adapter.method": method, **needed})
    config = recipe.adapter.config(**({"total_step": 10**6} if recipe.adapter.planned else {}))
    assert str(config.peft_type).lower() == method and config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.epoch": 1}, "train.epoch is not a key of a recipe. Did you mean 'train.epochs'?"),
        ({"trian": {"lr": 1}}, "trian is not a key of a recipe. Did you mean 'train'?"),
        ({"epochs": 1}, "epochs is not a key of a recipe. Did you mean 'train.epochs'?"),
        ({"train.learning_rate": 1}, "train.learning_rate is not a key of a recipe. Did you mean 'train.lr'?"),
        ({"train.max_length": 1}, "train.max_length is not a key of a recipe. Did you mean 'data.max_length'?"),
        ({"data.qqqq": 1}, "data.qqqq is not a key of a recipe. `inlay schema --text` lists them."),
        ({"train.batch": 0}, "train.batch=0 is not allowed: expected greater than or equal to 1."),
        ({"train.lr": float("nan")}, "train.lr=nan is not allowed: expected a finite number."),
        (
            {"model.quantize": "int4"},
            "model.quantize='int4' is not allowed: expected 'none', 'nf4' or 'int8'.",
        ),
        ({"data.eval": [1]}, "data.eval=[1] is not allowed: expected a number or text."),
        ({"watch": 3}, "watch=3 is not allowed: expected keys with values below it."),
        ({"model": "gpt2"}, "model.name is not a key of a recipe: model has no keys."),
        ({"adapter.rank": 3}, "adapter.rank is not a field of the method 'lora'. Did you mean 'rank_pattern' or 'r'?"),
        ({"adapter.r": -1}, "adapter.r=-1 is not allowed: expected an integer of at least 1."),
        ({"adapter.method": "full", "adapter.r": 3}, "adapter.method='full' has no fields, but ['r'] are given."),
        (
            {"train.early_stopping": 2},
            "train.early_stopping needs data.eval: a share of the rows, e.g. 0.05, or a file.",
        ),
        (
            {"data.eval": 0.1, "train.eval_every": 30},
            "train.save_every=100 is not allowed: expected a multiple of train.eval_every=30, so that the best "
            "evaluation has a checkpoint.",
        ),
    ],
)
def test_a_fault_is_one_sentence_with_the_nearest_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.make({**changes, **LEAST} if "model" in changes else {**LEAST, **changes})
    assert str(caught.value).removeprefix("the recipe: ") == sentence


def test_an_unknown_method_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"adapter.method='lorra' is not a method.*adalora.*Did you mean 'lora'"):
        make(**{"adapter.method": "lorra"})


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"the recipe: model is missing.\nthe recipe: data is missing.$"):
        Recipe.make({"out": "x"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "not YAML in line 2: the key 'a' stands there twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: [1", "not YAML in line"),
        ("a: !!python/object:os.system 1", "could not determine a constructor"),
        ("[" * 20_000, "nested too deeply"),
    ],
)
def test_yaml_that_is_not_read(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_yaml(text, "x")


@pytest.mark.parametrize("text", ["1e-4", "1E5", "+.5", "-1.5e+3", "3.", "2.5"])
def test_numbers_are_those_of_json(text: str) -> None:
    assert parse_yaml(text, "x") == float(text) and isinstance(parse_yaml(text, "x"), float)
    assert isinstance(parse_yaml("12", "x"), int)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="There is no file"):
        Recipe.load(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="holds list, expected keys with values"):
        Recipe.load(tmp_path / "list.yaml")
    (tmp_path / "large.yaml").write_text("# " + "x" * 2**20)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        Recipe.load(tmp_path / "large.yaml")


def test_changes_that_make_no_difference_are_none() -> None:
    before = make().resolved()
    assert make(**{"watch.prompts": ["a"], "train.keep": 3, "out": "y"}).changes(before) == []
    assert make(**{"train.lr": 1e-3, "adapter.r": 4}).changes(before) == [
        "adapter.r: 16 -> 4",
        "train.lr: 0.0002 -> 0.001",
    ]


def test_the_page_has_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    block = text[text.index("    model:\n") : text.index("    out: runs/mine\n")]
    shown = dict(flat(parse_yaml(block, "docs/train.md")))
    made = Recipe.make({"model.name": "m", "data.train": "d", "out": "o"}).model_dump(mode="json")
    for key, default in flat(made):
        if key not in ("model.name", "data.train", "data.eval", "out") and not key.startswith("adapter."):
            assert key in shown and shown[key] == default, key
