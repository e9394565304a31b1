"""TRL's trainers with `peft_config`, in scripts that know nothing of Inlay: the losses are those that peft gives."""

from __future__ import annotations

import pytest

from inlay import LoraConfig, get_peft_model
from inlay.layer import TunerLayer
from tests.hf.tiny import base
from tests.peft.run import assert_same, both
from tests.peft.test_scripts import fell, furthest

pytest.importorskip("peft", minversion="0.21.2")
pytest.importorskip("trl", minversion="1.16")


def test_sft() -> None:
    ours, theirs = both("sft.py")
    assert_same(ours, theirs)
    assert fell([entry["loss"] for entry in ours["plain"]])
    for name in ("loaded", "resumed"):
        assert furthest(ours[name], ours["trained"]) < 1e-6, name


def test_dpo_and_kto() -> None:
    ours, theirs = both("preferences.py")
    assert_same(ours, theirs)
    assert ours["adapters"] == ["default", "ref"]
    for name in ("fresh", "trained", "kto"):
        assert fell([entry["loss"] for entry in ours[name]]), name


def test_grpo_and_rloo() -> None:
    ours, theirs = both("online.py")
    assert_same(ours, theirs)
    for name, found in ours.items():
        assert found["history"][0]["kl"] == 0 < found["history"][-1]["kl"], name


def test_a_head_trained_in_full_is_refused_by_trl_and_not_left_untrained() -> None:
    # TRL multiplies by `lm_head.weight` itself, which in a view is the base's; it refuses layers that are peft's
    view = get_peft_model(base("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert isinstance(view.get_base_model().get_output_embeddings(), TunerLayer)
