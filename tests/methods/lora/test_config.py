"""LoRA's fields: bad values, limits, scales and ranks by pattern."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import pytest

from inlay import LoraConfig, PeftConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import Mlp, mlp

NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("r", "4", "an integer of at least 1"),
        ("r", 0, "an integer of at least 1"),
        ("r", -2, "an integer of at least 1"),
        ("r", 2.0, "an integer of at least 1"),
        ("r", True, "an integer of at least 1"),
        ("r", None, "an integer of at least 1"),
        ("r", 5_000_000, "at most 65536"),
        ("r", 10**13, "at most 65536"),
        ("lora_alpha", NAN, "a finite number"),
        ("lora_alpha", math.inf, "a finite number"),
        ("lora_alpha", -math.inf, "a finite number"),
        ("lora_alpha", 1e308, "a finite number from -1e\\+06 to 1e\\+06"),
        ("lora_alpha", 10**400, "a finite number"),
        ("lora_alpha", "8", "a finite number"),
        ("lora_alpha", None, "a finite number"),
        ("lora_alpha", True, "a finite number"),
        ("lora_dropout", 2, "a finite number from 0 to 1"),
        ("lora_dropout", -0.1, "a finite number from 0 to 1"),
        ("lora_dropout", NAN, "a finite number from 0 to 1"),
        ("lora_dropout", "0.1", "a finite number from 0 to 1"),
        ("bias", "some", "one of 'none', 'all', 'lora_only'"),
        ("bias", True, "one of 'none'"),
        ("bias", None, "one of 'none'"),
        ("use_rslora", 1, "True or False"),
        ("use_rslora", "yes", "True or False"),
        ("fan_in_fan_out", 0, "True or False"),
        ("init_lora_weights", "pizza", "one of True, False, 'gaussian', 'orthogonal'"),
        ("init_lora_weights", 1, "one of True"),
        ("init_lora_weights", 0, "one of True"),
        ("init_lora_weights", None, "one of True"),
        ("rank_pattern", [], "a dict from module name to value"),
        ("rank_pattern", None, "a dict from module name to value"),
        ("rank_pattern", {1: 2}, "a dict from module name"),
        ("rank_pattern", {"": 2}, "a dict from module name"),
        ("alpha_pattern", "q", "a dict from module name to value"),
        ("trainable_token_indices", "abc", "a list of token indices, or a dict of such"),
        ("trainable_token_indices", 3, "a list of token indices"),
        ("trainable_token_indices", 0, "a list of token indices"),
        ("trainable_token_indices", {"a": 3}, "a list of token indices"),
        ("trainable_token_indices", {3: [1]}, "a list of token indices"),
    ],
)
def test_25_bad_values_name_field_value_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}=.* is not allowed: expected .*{allowed}") as caught:
        LoraConfig(**{field: value})
    assert caught.value.field == field and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank_pattern", {"a": "1"}, r"rank_pattern\['a'\]='1' is not allowed: expected an integer of at least 1"),
        ("rank_pattern", {"a": 1, "b": 0}, r"rank_pattern\['b'\]=0"),
        ("rank_pattern", {"a": 10**7}, r"rank_pattern\['a'\]=10000000.*at most 65536"),
        ("alpha_pattern", {"a": NAN}, r"alpha_pattern\['a'\]=nan.*a finite number"),
        ("alpha_pattern", {"a": 1e300}, r"alpha_pattern\['a'\]=1e\+300"),
    ],
)
def test_entries_of_patterns_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**{field: value})


def test_a_typo_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'gaussian'"):
        LoraConfig(init_lora_weights="gausian")


def test_09_10_11_sizes_are_refused_before_anything_is_allocated() -> None:
    tracemalloc.start()
    start = time.thread_time()
    for fields in (
        {"r": 5_000_000},
        {"r": 10**13},
        {"rank_pattern": {"up": 5_000_000}},
        {"alpha_pattern": {f"m{i}": 1.0 for i in range(50_000)}},
        {"layers_to_transform": [10**12], "target_modules": ["up"]},
    ):
        with pytest.raises(ConfigError):
            get_peft_model(mlp(), PeftConfig.from_dict({"peft_type": "LORA", "target_modules": ["up"], **fields}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.thread_time() - start < 5 and peak < 50e6


def test_the_largest_patterns_are_still_quick() -> None:
    patterns = {f"layer{i}.x": 4 for i in range(3_000)}
    config = LoraConfig(target_modules=["up", "down"], rank_pattern=patterns)
    start = time.thread_time()
    get_peft_model(Mlp(), config)
    assert time.thread_time() - start < 5


def test_ranks_and_scales_by_pattern() -> None:
    config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"up": 2, r"layers\.\d+\.down": 16}, alpha_pattern={"up": 6})
    assert [config.rank(p) for p in ("a.up", "xup", "layers.3.down", "down")] == [2, 4, 16, 4]
    assert [config.scale(p) for p in ("a.up", "xup", "layers.3.down")] == [3.0, 2.0, 0.5]
    rslora = config.replaced(use_rslora=True)
    assert rslora.scale("layers.3.down") == 8 / 4 and rslora.scale("a.up") == 6 / math.sqrt(2)


def test_defaults() -> None:
    config = LoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 8, 0.0, "none")
    assert config.init_lora_weights is True and config.use_rslora is False and config.fan_in_fan_out is False
    assert config.rank_pattern == {} and config.alpha_pattern == {} and config.trainable_token_indices is None
    assert config.default_targets("llama") == ["q_proj", "v_proj"] and config.default_targets(None) is None
    assert config.default_targets("no such model") is None
