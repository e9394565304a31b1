"""diffusers' scripts under `python -m inlay.peft` and under peft: the same files, latents, gradients and names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.peft.run import assert_same, run

for _name, _reason in (("diffusers", "diffusers"), ("peft", "peft, to compare with")):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"needs {_reason}", allow_module_level=True)


DEFAULTS = (".megatron_core", ".qalora_group_size")  # of features that are off


def reports(script: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a script reports under Inlay and under peft, each with a folder of its own."""
    folders = [folder / "inlay", folder / "peft"]
    for own in folders:
        own.mkdir()
    return run(script, str(folders[0])), run(script, str(folders[1]), peft="peft")


def test_training_and_saving_as_the_example_scripts_do(tmp_path: Path) -> None:
    ours, theirs = reports("diffusers_train.py", tmp_path)
    configs = [json.loads(r.pop("metadata")["lora_adapter_metadata"]) for r in (ours, theirs)]
    assert_same(ours, theirs)
    assert ours["resumed"] and ours["resumed_text"]
    assert ours["losses"][2] < ours["losses"][0]
    assert ours["after"] != ours["before"]
    # the configs in the file: what one of them leaves out is not used by the other; Inlay notes what the base is
    mine, other = configs
    for key in (mine.keys() | other.keys()) - {"unet.auto_mapping", "text_encoder.auto_mapping"}:
        left, right = (sorted(v) if isinstance(v, list) else v for v in (mine.get(key), other.get(key)))
        assert left == right or not (left or right) or (key not in mine and key.endswith(DEFAULTS)), key


def test_adapters_of_a_pipeline(tmp_path: Path) -> None:
    ours, theirs = reports("diffusers_pipeline.py", tmp_path)
    # with one adapter merged, peft leaves out the others that are active
    beside, left_out = (found.pop("a fused beside b") for found in (ours, theirs))
    assert_same(beside, ours["both"])
    assert left_out != pytest.approx(theirs["both"], abs=0.1)
    assert_same(ours, theirs)
    same = [
        ("none", "base"),
        ("whole again", "a"),
        ("after errors", "b"),
        ("a at 1", "a"),
        ("disabled", "base"),
        ("enabled", "a"),
        ("unscaled", "a"),
        ("enabled", "a at 1"),
        ("unfused", "both"),
        ("both unfused", "both"),
        ("unloaded", "base"),
        ("off", "base"),
        ("deleted", "base"),
    ]
    for left, right in same:
        assert ours[left] == ours[right], f"{left} is not {right}, to the bit"
    for left, right in [("a", "base"), ("half", "a"), ("both", "a"), ("by blocks", "a"), ("fused for good", "base")]:
        assert ours[left] != ours[right], (left, right)


def test_other_kinds_of_files_and_models(tmp_path: Path) -> None:
    ours, theirs = reports("diffusers_formats.py", tmp_path)
    assert_same(ours, theirs)
    assert ours["first"] == ours["first again"]
    assert ours["second"] != ours["first"] and ours["of rank 3"] != ours["of rank 4"]
