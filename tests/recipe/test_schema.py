"""The recipe's JSON schema against the recipe itself: what one takes, the other takes, for every method."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from inlay.config import PeftConfig, config_class
from inlay.errors import ConfigError
from inlay.io.plain import parse_yaml, read_yaml
from inlay.recipe.recipe import Recipe, keys
from inlay.recipe.schema import DIALECT, descriptions, fields_of, recipe_schema, recipe_text
from inlay.recipe.sections import FULL, Adapter, methods
from tests.contract import cases

jsonschema = pytest.importorskip("jsonschema")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))
LEAST: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": "d"}, "out": "o"}


@pytest.fixture(scope="module")
def schema() -> Any:
    made = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(made)))


def faults(schema: Any, values: Any) -> list[str]:
    return [error.message for error in schema.iter_errors(values)]


def both(schema: Any, values: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the recipe takes these values, and whether the schema does."""
    try:
        Recipe.make(values)
    except ConfigError:
        return False, not faults(schema, values)
    return True, not faults(schema, values)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{train: {lr: 1e-4, max_steps: 3, eval_every: null, scheduler: linear}}",
        "{adapter: {method: ia3}}",
        "{adapter: {r: 4, target_modules: all-linear, rank_pattern: {q: 2}, init_lora_weights: pissa}}",
        "{adapter: {method: adalora, init_r: 6, target_r: 4}}",
        "{adapter: {method: lora, init_lora_weights: eva, eva_config: {rho: 2.0}}}",
        "{adapter: {method: full}}",
        "{data.eval: 0.1, data: {train: d}}",
        "{train.lr: 0.1, adapter.r: 2}",
        "{watch: {prompts: [a, b]}, report: {trackers: [tensorboard]}}",
        "{model: {name: m, dtype: bfloat16, quantize: nf4}}",
        "{data: {train: d, eval: rows.jsonl, columns: {instruction: question}}}",
    ],
)
def test_what_a_recipe_takes(schema: Any, text: str) -> None:
    assert both(schema, {**LEAST, **parse_yaml(text, "test")}) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        "{tarin: {lr: 1}}",
        "{train: {learning_rate: 1}}",
        "{train.learning_rate: 1}",
        "{train: {lr: -1}}",
        "{train: {batch: 1.5}}",
        "{train: {scheduler: cosin}}",
        "{train: 3}",
        "{model: {nam: m}}",
        "{model: {name: ''}}",
        "{out: null}",
        "{adapter: {rank: 4}}",
        "{adapter: {method: ia3, r: 4}}",
        "{adapter: {method: full, r: 4}}",
        "{adapter: {method: lorra}}",
        "{adapter: {r: many}}",
        "{adapter: {rank_pattern: 3}}",
        "{data: {}}",
        "{adapter: {base_model_name_or_path: m}}",
    ],
)
def test_what_it_refuses(schema: Any, text: str) -> None:
    assert both(schema, {**LEAST, **parse_yaml(text, "test")}) == (False, False)


@pytest.mark.parametrize("missing", ["model", "data", "out"])
def test_what_has_to_be_given(schema: Any, missing: str) -> None:
    values = {k: v for k, v in LEAST.items() if k != missing}
    assert both(schema, values) == (False, False)
    dotted = {"model": {"model.name": "m"}, "data": {"data.train": "d"}, "out": {"out": "o"}}[missing]
    assert both(schema, {**values, **dotted}) == (True, True)


@pytest.mark.parametrize("make", cases.methods())
def test_every_field_that_the_methods_tests_set(schema: Any, make: cases.Make) -> None:
    config = make(target_modules=["fc"])
    plain = config.to_dict()
    method = str(config.peft_type).lower()
    own = {n: plain[n] for n in Adapter(method=method).names if n in plain}
    assert both(schema, {**LEAST, "adapter": {"method": method, **own}}) == (True, True)


@pytest.mark.parametrize("method", methods())
def test_a_methods_fields(method: str) -> None:
    cls: type[PeftConfig] = config_class(method)
    found = fields_of(method)
    assert list(found) == Adapter(method=method).names
    assert [name for name, field in found.items() if not field.description] == []
    recipes_own = Adapter(method=method).fields
    for f in dataclasses.fields(cls):
        if f.name in found and f.name not in recipes_own and f.default is not dataclasses.MISSING:
            assert found[f.name].default == f.default
    properties = recipe_schema(method)["$defs"][f"method_{method}"]["properties"]
    assert list(properties) == ["method", *found] and json.dumps(properties)


def test_the_schema_of_one_method() -> None:
    made = recipe_schema("ia3")
    schema = jsonschema.Draft202012Validator(made)
    assert made["$schema"] == DIALECT and [k for k in made["$defs"] if k.startswith("method_")] == ["method_ia3"]
    good = {**LEAST, "adapter": {"method": "ia3", "target_modules": ["q"], "feedforward_modules": []}}
    assert faults(schema, good) == []
    assert faults(schema, LEAST) and faults(schema, {**LEAST, "adapter": {"method": "lora"}})
    assert faults(schema, {**LEAST, "adapter": {"target_modules": ["q"]}})
    assert not faults(jsonschema.Draft202012Validator(recipe_schema("lora")), LEAST)
    with pytest.raises(ConfigError, match=r"method='lorra' is not allowed: expected one of .* Did you mean 'lora'"):
        recipe_schema("lorra")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.name)
def test_examples(schema: Any, file: Path) -> None:
    Recipe.load(file)
    assert faults(schema, read_yaml(file)) == []


def test_descriptions_come_from_docstrings() -> None:
    class Some(PeftConfig):
        """W' = W.

        Args:
            a, b: two of
                them.
            task_type: another.

        Raises:
            ConfigError: never.
        """

    found = descriptions(Some)
    assert found["a"] == found["b"] == "two of them." and found["task_type"] == "another."
    assert found["revision"] == "the base's revision on the Hub." and "ConfigError" not in found


def test_the_text_has_every_key() -> None:
    text = recipe_text()
    assert [key for key in keys() if f"  {key} " not in text] == []
    assert [name for name in fields_of("lora") if f"  adapter.{name} " not in text] == []
    assert [name for name in [*methods(), FULL] if name not in text] == []
    assert "adapter.r                       integer (default 16): rank of the update." in text
    assert "one of cosine, linear, constant" in text and "text (needed): a folder, or an id on the Hub" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "adapter.feedforward_modules" in recipe_text("ia3") and "full has no fields" in recipe_text(FULL)
    with pytest.raises(ConfigError, match="Did you mean 'ia3'"):
        recipe_text("ia33")
