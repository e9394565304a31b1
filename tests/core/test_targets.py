"""Which modules a config means, over plain paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from inlay import LoraConfig
from inlay.core.targets import layer_index, matches_name, meant_by, pattern_value, select
from inlay.errors import ConfigError, TargetError

LEAVES = ["self_attn", "self_attn.q_proj", "self_attn.v_proj", "mlp", "mlp.down_proj", "norm"]
PATHS = ["", "model", "model.layers", *(f"model.layers.{i}.{m}" for i in range(12) for m in LEAVES), "lm_head"]
LINEAR = [p for p in PATHS if p.endswith("_proj")]


def nothing() -> Mapping[str, str]:
    return {}


def chosen(linear: Any = LINEAR, default: Any = None, aliases: Any = nothing, **fields: Any) -> list[str]:
    return select(LoraConfig(**fields), PATHS, default=default, linear=linear, aliases=aliases)[0]


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("q_proj", "q_proj", True),
        ("a.q_proj", "q_proj", True),
        ("a.b.q_proj", "b.q_proj", True),
        ("a.xq_proj", "q_proj", False),
        ("q_proj.x", "q_proj", False),
        ("a.q_proj", ".q_proj", False),
        ("a.q_proj", "a.q_proj", True),
        ("a.q.proj", "q_proj", False),
    ],
)
def test_names_match_at_dots(path: str, name: str, expected: bool) -> None:
    assert matches_name(path, name) is expected


def test_lists_keep_model_order_and_need_no_order() -> None:
    expected = [p for p in PATHS if p.endswith(("q_proj", "down_proj"))]
    assert chosen(target_modules=["down_proj", "q_proj"]) == expected
    assert chosen(target_modules={"q_proj", "down_proj"}) == expected
    assert chosen(target_modules=("q_proj", "down_proj", "q_proj")) == expected
    assert chosen(target_modules=["layers.3.self_attn.q_proj"]) == ["model.layers.3.self_attn.q_proj"]
    assert chosen(target_modules=["1.norm"]) == ["model.layers.1.norm"]


def test_a_string_is_a_regular_expression_for_the_whole_path() -> None:
    assert chosen(target_modules=r"model\.layers\.[01]\..*q_proj") == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert chosen(target_modules="lm_head") == ["lm_head"]
    with pytest.raises(TargetError, match=r"target_modules: 'q_proj' matches no module.*Did you mean 'q_proj'"):
        chosen(target_modules="q_proj")


def test_all_linear_and_defaults() -> None:
    assert chosen(target_modules="all-linear") == LINEAR
    assert chosen(default=["q_proj"]) == [p for p in PATHS if p.endswith("q_proj")]
    assert chosen(default="all-linear") == LINEAR
    assert chosen(default=r".*v_proj", target_modules=["lm_head"]) == ["lm_head"]
    with pytest.raises(TargetError, match="no linear layer"):
        chosen(target_modules="all-linear", linear=[])
    with pytest.raises(
        TargetError, match=r"no default target_modules.*'all-linear'.*called: down_proj, q_proj, v_proj"
    ):
        chosen()


def test_exclusions() -> None:
    kept = chosen(target_modules=["q_proj", "v_proj"], exclude_modules=["v_proj", "layers.0.self_attn.q_proj"])
    assert kept == [p for p in PATHS if p.endswith("q_proj")][1:]
    assert chosen(target_modules="all-linear", exclude_modules=r".*\.(self_attn|mlp)\.[qd].*") == [
        p for p in LINEAR if p.endswith("v_proj")
    ]
    with pytest.raises(TargetError, match=r"exclude_modules: 'vproj' matches no module of the model.*'v_proj'"):
        chosen(target_modules=["q_proj"], exclude_modules=["vproj"])
    with pytest.raises(TargetError, match=r"exclude_modules=\['q_proj'\].*names that leave a target"):
        chosen(target_modules=["q_proj"], exclude_modules=["q_proj"])


def test_layers() -> None:
    for layers in (3, [3], (3,), {3}):
        assert chosen(target_modules=["q_proj"], layers_to_transform=layers) == ["model.layers.3.self_attn.q_proj"]
    got = chosen(target_modules=["q_proj", "norm"], layers_to_transform=[11, 1], layers_pattern="layers")
    assert [layer_index(p, None) for p in got] == [1, 1, 11, 11]
    assert chosen(default=["norm"], layers_to_transform=range(2)) == ["model.layers.0.norm", "model.layers.1.norm"]
    with pytest.raises(TargetError, match=r"layers_to_transform=\[12, 30\].*indices among \[0, 1, 2.*11\]"):
        chosen(target_modules=["q_proj"], layers_to_transform=[1, 12, 30])
    with pytest.raises(TargetError, match=r"layers_to_transform=\[0\].*indices among \[\]"):
        chosen(target_modules=["q_proj"], layers_to_transform=0, layers_pattern="h")


@pytest.mark.parametrize(
    ("path", "patterns", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", None, 3),
        ("h.12.attn.c_attn", None, 12),
        ("encoder.layers.1.sub.2.fc", None, 1),
        ("encoder.layers.1.sub.2.fc", "sub", 2),
        ("encoder.layers.1.sub.2.fc", ["blocks", "sub"], 2),
        ("encoder.layers.1.sub.2.fc", ["layers", "sub"], 1),
        ("a.b.c", None, None),
        ("layers.x.1", None, None),
        ("mylayers.3.fc", "layers", None),
        ("lay.ers.3.fc", "lay.ers", 3),
        ("layXers.3.fc", "lay.ers", None),
    ],
)
def test_layer_indices(path: str, patterns: Any, expected: int | None) -> None:
    assert layer_index(path, patterns) == expected


def test_a_typo_names_the_nearest() -> None:
    with pytest.raises(
        TargetError, match=r"target_modules: 'qproj' matches no module.*Did you mean 'q_proj'"
    ) as caught:
        chosen(target_modules=["qproj"])
    assert isinstance(caught.value, ConfigError) and caught.value.field == "target_modules"
    assert caught.value.value == ["qproj"]
    assert "Names of its modules: down_proj, layers, lm_head, mlp" in str(caught.value)


def test_every_entry_has_to_match_something() -> None:
    with pytest.raises(TargetError, match=r"'kproj', 'up' match no module") as caught:
        chosen(target_modules=["q_proj", "kproj", "up"])
    assert caught.value.value == ["kproj", "up"]


def test_an_empty_list_means_nothing() -> None:
    assert chosen(target_modules=[], default=["q_proj"]) == []


def test_earlier_names_count_where_todays_mean_nothing() -> None:
    aliases = {p: p.replace("q_proj", "query").replace("self_attn", "attention") for p in PATHS if "q_proj" in p}
    config = LoraConfig(target_modules=["query", "v_proj"])
    got, renamed = select(config, PATHS, default=None, linear=LINEAR, aliases=lambda: aliases)
    assert got == [p for p in PATHS if p.endswith(("q_proj", "v_proj"))]
    assert renamed == [p for p in PATHS if p.endswith("q_proj")]
    assert chosen(target_modules=r".*\.attention\.query", aliases=lambda: aliases) == renamed
    calls: list[int] = []
    chosen(target_modules=["q_proj"], aliases=lambda: calls.append(1) or aliases)
    assert not calls, "the table is made only when it is needed"
    with pytest.raises(TargetError, match="'key' matches no module"):
        chosen(target_modules=["query", "key"], aliases=lambda: aliases)


def test_meant_by_takes_another_way_to_match() -> None:
    got, _ = meant_by(["_proj"], "modules_to_save", PATHS, nothing, str.endswith)
    assert got == LINEAR


def test_patterns_are_names_or_regular_expressions_and_the_first_counts() -> None:
    patterns = {"q_proj": 1.0, r"layers\.1\..*": 2.0, "layers.0.mlp.down_proj": 3.0, r"[uvw]_proj": 4.0}
    values = {p: pattern_value(patterns, p, 0.0, "alpha_pattern") for p in PATHS}
    assert values["model.layers.1.self_attn.q_proj"] == 1
    assert values["model.layers.1.mlp.down_proj"] == 2
    assert values["model.layers.0.mlp.down_proj"] == 3
    assert values["model.layers.5.self_attn.v_proj"] == 4
    assert values["model.layers.5.mlp.down_proj"] == 0
    oracle = {p: next((v for k, v in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{k})", p)), 0.0) for p in PATHS}
    assert values == oracle
    with pytest.raises(TargetError, match=r"alpha_pattern='\(' is not allowed"):
        pattern_value({"(": 1.0}, "a", 0.0, "alpha_pattern")
