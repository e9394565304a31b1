"""Alpaca's golden filter cases, and those of the other languages."""

# ruff: noqa: RUF001
from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.errors import ConfigError
from inlay.selfinstruct.filters import ENGLISH_WORDS, first_to_drop
from inlay.selfinstruct.profile import PROFILES, Profile, profile_of
from inlay.selfinstruct.prompt import Task


def verdict(profile: str, instruction: str, output: str = "Yes.") -> str | None:
    return first_to_drop(Task(instruction, "", output), PROFILES[profile].filters)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("", "length"),
        ("Name three birds", "length"),
        ("Name three grey birds", None),
        (" ".join(["word"] * 150), None),
        (" ".join(["word"] * 151), "length"),
        ("Explain the use of imagery here", None),
        ("Explain the use of IMAGES here", "blacklist"),
        *((f"Please say {word} once more", "blacklist") for word in ENGLISH_WORDS),
        ("Describe the filename and a drawing", None),
        ("Where to go to today please", "blacklist"),
        ("Write a program that sorts numbers", "program"),
        ("write a program that sorts numbers", None),
        ("Please write a program that sorts", None),
        ("(a) choose the best answer", "punctuation"),
        *((f"{sign}choose the best answer", "punctuation") for sign in string.punctuation),
        ("3 reasons to learn Latin", None),
        ("Écris un poème sur Paris", "not ascii"),
        ("Say it: écris un poème", None),
        ("请写一首关于春天的诗", "length"),  # one word, as white space counts
    ],
)
def test_alpacas_golden_cases(instruction: str, reason: str | None) -> None:
    assert verdict("alpaca", instruction) == reason


def test_alpaca_keeps_tasks_without_an_output() -> None:
    assert verdict("alpaca", "Name three grey birds", output="") is None


def alpaca_says(instruction: str) -> str | None:
    """The rules of systems.md A2, said again in another way."""
    if not 3 < len(instruction.split()) <= 150:
        return "length"
    banned = (
        "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
    )
    if any(re.search(rf"\b{w}\b", instruction, re.I) for w in [*banned.split(), "go to"]):
        return "blacklist"
    if instruction[:15] == "Write a program":
        return "program"
    if instruction[0] in string.punctuation:
        return "punctuation"
    return None if ord(instruction[0]) < 128 else "not ascii"


@given(
    st.lists(
        st.sampled_from(
            ["map", "Maps", "write", "Write a program", "(", "é", "go", "to", "a", "9", "images.", "\u2028", "画"]
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_order_of_alpacas_filters(words: list[str]) -> None:
    instruction = " ".join(words).strip()
    assert verdict("alpaca", instruction) == alpaca_says(instruction)


@pytest.mark.parametrize("profile", ["zh", "zh-jieba", "any"])
@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("请写一首关于春天的诗", None),
        ("写诗吧", "length"),
        ("描述这张图片里的内容", "blacklist"),
        ("，请写一首关于春天的诗", "punctuation"),
        ("（一）请写一首诗", "punctuation"),
        ("写" * 1001, "length"),
    ],
)
def test_chinese_is_judged_by_characters(profile: str, instruction: str, reason: str | None) -> None:
    assert verdict(profile, instruction) == reason


def test_other_languages() -> None:
    assert verdict("zh", "编写一个程序来排序") == "program"
    assert verdict("any", "Écris un poème sur Paris") is None
    assert verdict("any", "Опиши осенний лес") is None
    assert verdict("any", "Describe the picture below") == "blacklist"
    assert verdict("any", "Name three grey birds", output="") == "no output"
    assert verdict("any", "¿Qué hora es?") == "punctuation"  # as Alpaca has it for ASCII signs


def test_profiles_are_chosen_by_name_or_given() -> None:
    own = Profile("mine", "head", "seeds.jsonl", (), str.split)
    assert profile_of(own) is own and profile_of("zh") is PROFILES["zh"]
    with pytest.raises(ConfigError, match=r"profile='alpac' is not allowed.*Did you mean 'alpaca'\?"):
        profile_of("alpac")


def test_only_alpaca_needs_english() -> None:
    assert "English" in PROFILES["alpaca"].head and "English" not in PROFILES["any"].head
    assert "中文" in PROFILES["zh"].head
