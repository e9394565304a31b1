"""Adapters used through transformers: what a script reports under Inlay is what it reports under peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .run import assert_same, run

Pair = tuple[dict[str, Any], dict[str, Any]]
PARTS = ["in_place", "loading", "automatic", "heads", "renamed", "methods", "swapping", "convolution", "speech"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each of the two writes."""
    return {peft: tmp_path_factory.mktemp(peft) for peft in ("inlay", "peft")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> Pair:
    """What `transformers_models.py` reports under Inlay, and under peft."""
    script = "transformers_models.py"
    return run(script, str(folders["inlay"])), run(script, str(folders["peft"]), peft="peft")


@pytest.mark.parametrize("part", PARTS)
def test_models_changed_in_place(models: Pair, part: str) -> None:
    ours, theirs = (report[part] for report in models)
    if part == "loading":
        # peft leaves its own names in a model that is saved whole once its adapters are deleted
        assert ours.pop("whole") is True and theirs.pop("whole") is False
    elif part == "methods":
        # DoRA's magnitudes are not loaded: transformers and peft differ over their name
        assert ours["dora"].pop("again") is True and theirs["dora"].pop("again") is False
        assert all(
            found["again"] and found["view"] for name, found in ours.items() if "logits" in found and name != "dora"
        )
    assert_same(ours, theirs)


def test_the_files_of_one_are_read_by_the_other(models: Pair, folders: dict[str, Path]) -> None:
    ours = run("transformers_read.py", str(folders["peft"]))
    theirs = run("transformers_read.py", str(folders["inlay"]), peft="peft")
    assert_same(ours, theirs)
    for name, (in_place, view) in ours.items():
        assert_same(in_place, view, at=name)
    assert_same(ours["in_place"][0], models[0]["in_place"]["first"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """What `transformers_trainer.py` reports under Inlay, and under peft."""
    found = (run("transformers_trainer.py", str(tmp_path_factory.mktemp(p)), peft=p) for p in ("inlay", "peft"))
    return next(found), next(found)


@pytest.mark.parametrize("part", ["views", "noise", "heads", "in_place", "card"])
def test_trainer(trained: Pair, part: str) -> None:
    ours, theirs = (report[part] for report in trained)
    assert_same(ours, theirs)


def test_trainer_itself(trained: Pair) -> None:
    """What does not depend on peft being right."""
    views = trained[0]["views"]
    assert views["best"] == "checkpoint-1" and views["after"] == max(views["eval_loss"]) > views["eval_loss"][-1]
    straight, resumed, *losses = views["resumed"]
    assert abs(straight - resumed) < 1e-6 and losses[:3] == losses[3:]
    assert trained[0]["card"] == {
        "pushed": ["adapter_config.json", "adapter_model.safetensors"],
        "card": ["library_name: peft", "base_model: someone/base", "# mine"],
    }
