"""Scripts written for peft, unchanged, under `python -m inlay.peft` and under peft: the same losses, logits and files.

Each runs as a process of its own, twice, with the same seeds and nothing carried over: the adapters start alike because
Inlay draws random numbers in peft's order (`tests/parity/test_starts.py`).
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.peft.run import assert_same, both

pytest.importorskip("peft", minversion="0.21.2")
pytest.importorskip("transformers")


def flat(value: Any) -> list[float]:
    """The numbers in nested lists."""
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


def furthest(one: Any, other: Any) -> float:
    """The largest difference of two nested lists of numbers."""
    return max(abs(a - b) for a, b in zip(flat(one), flat(other), strict=True))


def fell(losses: list[float]) -> bool:
    """Whether training did something: the losses are not all one number."""
    return max(losses) - min(losses) > 1e-3


def test_lora_with_trainer() -> None:
    ours, theirs = both("lora_trainer.py")
    assert_same(ours, theirs)
    # the numbers say something: training moved the logits, and what must be equal within one run is
    assert ours["changed"] == 12 and fell(ours["losses"])
    for name in ("trained", "second", "summed", "concatenated"):
        assert furthest(ours[name], ours["disabled"]) > 1e-2, name
    for name in ("reloaded", "merged_in_place", "merged", "from_disk"):
        assert furthest(ours[name], ours["trained"]) < 1e-5, name
    assert furthest(ours["switched"], ours["second"]) < 1e-6


def test_prompt_methods_with_trainer() -> None:
    ours, theirs = both("prompts.py")
    assert_same(ours, theirs)
    assert len(ours) == 6
    for name, found in ours.items():
        assert fell(found["losses"]) and furthest(found["trained"], found["loaded"]) < 1e-5, name


def test_adalora_with_a_loop_of_ones_own() -> None:
    ours, theirs = both("adalora.py")
    assert_same(ours, theirs)
    assert fell(ours["losses"])


def test_ia3_on_an_encoder_decoder() -> None:
    ours, theirs = both("seq2seq.py")
    assert_same(ours, theirs)
    assert ours["losses"][-1] < ours["losses"][0] and ours["targets"] == ["k", "v", "wo"]


def test_classification_with_a_trained_head() -> None:
    ours, theirs = both("classification.py")
    for name, head in (("text", 16 * 3), ("vit", 16 * 3 + 3)):
        mine, its = (re.findall(r"[\d,]+", found[name].pop("printed").replace(",", "")) for found in (ours, theirs))
        # a head trained in full replaces the base's: Inlay counts it once, peft twice
        assert mine[0] == its[0] and int(its[1]) - int(mine[1]) == head
        assert ours[name]["has_head"] and furthest(ours[name]["logits"], ours[name]["loaded"]) < 1e-6
    assert_same(ours, theirs)


def test_what_notebooks_read_and_set() -> None:
    ours, theirs = both("surface.py")
    assert_same(ours, theirs)
    assert furthest(ours["changed"], ours["logits"]) > 1e-3 and furthest(ours["mixed"][0], ours["logits"][0]) < 1e-5


def test_two_prompts_on_one_base_and_whisper() -> None:
    ours, theirs = both("notebooks.py")
    assert_same(ours, theirs)
    assert fell(ours["whisper"])
