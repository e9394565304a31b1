"""Regular expressions from files: useful ones pass, and no pattern makes matching slow."""

from __future__ import annotations

import re
import time

import pytest

from inlay.core import regex
from inlay.core.regex import compile_regex, within_limits
from inlay.errors import ConfigError, TargetError

PATHS = [
    f"model.language_model.layers.{i}.{m}"
    for i in range(32)
    for m in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.experts.7.down_proj", "input_layernorm")
]

USEFUL = [
    r".*\.(q|v)_proj",
    r"model\.language_model\.layers\.(?:[0-9]|1[0-9]|2[0-3])\.self_attn\.(?:q_proj|k_proj|v_proj|o_proj)",
    r".*language_model.*\.(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*",
    r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj)$",
    r"^(?:(?!visual|merger).)*(?:q_proj|v_proj)$",
    r"model(\.\w+)?\.layers\.\d+\.mlp\.(experts\.\d+\.)?down_proj",
    r".*layers\.(1|2|10|11|12|13)\.self_attn\.(k|q|v|o)_proj",
    # the patterns that unsloth and diffusers' scripts make
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:qkv|proj|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:qkv)|(?:proj)|(?:q_proj)|(?:k_proj)))",
    r"(.*x_embedder|.*(?<!single_)transformer_blocks\.[0-9]+\.norm1\.linear|.*(?<!single_)transformer_blocks\.[0-9]+\."
    r"attn\.to_k|.*single_transformer_blocks\.[0-9]+\.proj_mlp|.*(?<!single_)transformer_blocks\.[0-9]+\.ff\.net\.2)$",
]

BOMBS = [
    r"(a+)+$",
    r"(.*)*Z",
    r"(x+x+)+y",
    r"(.*a){20}Z",
    r".*.*.*.*.*.*.*.*Z",
    r".*[a-z].*[a-z].*[a-z].*[a-z].*[a-z].*[a-z].*Z",
    r"(?:aa|a|\w|\.)*Z",
    r"((a|b)|[a-z.0-9_])+Z",
    r"(?:[a-z._0-9]?){30}Z",
    r"(?:.|..|...){1,20}Z",
    r"(?:\w\.?|\.|\w\w)+Z",
    r"(?=(.*a)+Z).*",
    r"(?!(.*a)+Z)(.*b)+Z",
    r"(?:(?:a*)*){0}(x+x+)+y",
    r"(?:(?:a*)*|b){0}(?:.|..)*Z",
    r"(?P<a>.)?(?(a)(?:.|..)*|b)Z",
    r"(.*?)*?Z",
    r"(?i:(\w+)+)Z",
    r"(?:.*.*.*){9}",
    r"(?:a|" * 30 + "a" + ")" * 30 + "*Z",
    "(?:.|.)" * 40 + "Z",
    r"(?:\w?\w?\w?){12}Z",
    ".?" * 60 + "." * 60 + "Z",
]


@pytest.mark.parametrize("pattern", USEFUL)
def test_useful_patterns_pass_and_match_as_python_does(pattern: str) -> None:
    matches = within_limits(pattern, "target_modules")
    expected = [p for p in PATHS if re.fullmatch(pattern, p)]
    assert [p for p in PATHS if matches(p)] == expected
    compile_regex(pattern, "rank_pattern", any_prefix=True)


@pytest.mark.parametrize("pattern", BOMBS)
def test_08_bombs_are_refused_or_over_within_a_second(pattern: str) -> None:
    start = time.thread_time()
    try:
        matches = within_limits(pattern, "target_modules")
        for path in PATHS:
            matches(path)
    except TargetError as error:
        assert error.field == "target_modules" and error.value == pattern
        assert "list of names instead" in str(error)
    assert time.thread_time() - start < 2.5


def test_most_bombs_are_refused_before_the_first_match() -> None:
    def refused(pattern: str) -> bool:
        try:
            compile_regex(pattern, "f")
        except TargetError:
            return True
        return False

    assert [p for p in BOMBS if not refused(p)] == []
    assert not any(map(refused, USEFUL))


def test_many_slow_matches_are_stopped_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(regex.time, "thread_time", lambda: float(next(clock)))
    matches = within_limits(".*", "exclude_modules")
    assert matches("a") and matches("b")
    with pytest.raises(ConfigError, match=r"exclude_modules='\.\*' is not allowed.*matched quickly.*list of names"):
        matches("c")


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "a{2,1}", "*a", "(?P<1>a)", "a{99999999999999999999}", "\\", "(" * 5000]
)
def test_what_is_no_regular_expression(pattern: str) -> None:
    with pytest.raises(TargetError, match=r"rank_pattern=.*expected a regular expression"):
        compile_regex(pattern, "rank_pattern")


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    for depth in (100, 600, 1300):
        try:
            compile_regex("(?:" * depth + "a" + ")" * depth, "f")
        except TargetError:
            assert depth > 100


def test_any_prefix_is_whole_names_only() -> None:
    pattern = compile_regex("q_proj|k", "f", any_prefix=True)
    assert [bool(pattern.fullmatch(p)) for p in ("q_proj", "a.q_proj", "xq_proj", "a.b.k", "ak")] == [1, 1, 0, 1, 0]
