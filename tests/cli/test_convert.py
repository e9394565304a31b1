"""`inlay convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inlay import IA3Config, PeftModel, get_peft_model
from inlay.io.folder import MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, open_folder
from tests.cli.test_train import run
from tests.comparison.lm import base, view
from tests.tiny import close, ids, scramble


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An (IA)^3 adapter, and its base beside it."""
    base().save_pretrained(tmp_path / "base")
    model = scramble(get_peft_model(base(), IA3Config(task_type="CAUSAL_LM")), 0.3)
    model.save_pretrained(str(tmp_path / "ia3"))
    return tmp_path


def test_by_default_it_becomes_inlays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ia3" / MANIFEST_NAME).unlink()
    assert run("convert", str(folder / "ia3"), str(folder / "new"))[0] == 0
    assert open_folder(folder / "new").verified
    out = capsys.readouterr().out
    assert out.startswith(f"inlay: {folder / 'new'}\n  IA3\n") and "note: the manifest does not say which base" in out


def test_a_method_as_lora(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["convert", str(folder / "ia3"), str(folder / "new"), "--to", "lora", "--base", str(folder / "base")]
    assert run(*given)[0] == 2
    assert "inlay: rank=None is not allowed" in capsys.readouterr().err and not (folder / "new").exists()
    assert run(*given, "--rank", "16", "--json")[0] == 0
    report = json.loads(capsys.readouterr().out)
    assert report["methods"] == ["IA3", "LORA"] and max(report["report"]["errors"].values()) < 1e-5
    one, two = (PeftModel.from_pretrained(base(), str(folder / name)) for name in ("ia3", "new"))
    close(one(ids(2, 4)).logits, two(ids(2, 4)).logits, 1e-4, 1e-4)


@pytest.mark.parametrize(("rank", "ranks"), [("1", {1}), ("2.0", {2}), ("0.9999999", {4})])
def test_a_rank_or_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: str, ranks: set[int]) -> None:
    base().save_pretrained(tmp_path / "base")
    view().save_pretrained(str(tmp_path / "a"))
    options = ["--to", "lora", "--rank", rank, "--base", str(tmp_path / "base"), "--json"]
    assert run("convert", str(tmp_path / "a"), str(tmp_path / "b"), *options)[0] == 0
    assert set(json.loads(capsys.readouterr().out)["report"]["ranks"].values()) == ranks


def test_a_pickle_needs_consent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view().save_pretrained(str(tmp_path / "a"))
    torch.save(load_file(tmp_path / "a" / WEIGHTS_NAME), tmp_path / "a" / PICKLE_NAME)
    for name in (WEIGHTS_NAME, MANIFEST_NAME):
        (tmp_path / "a" / name).unlink()
    given = ["convert", str(tmp_path / "a"), str(tmp_path / "b")]
    assert run(*given)[0] == 1
    assert "is a pickle" in capsys.readouterr().err and not (tmp_path / "b").exists()
    assert run(*given, "--allow-pickle")[0] == 0
    assert "a pickle, became adapter_model.safetensors" in capsys.readouterr().out


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert run("convert", str(folder / "ia3"), str(folder / "base"), "--to", "peft")[0] == 1
    assert "is there and not empty" in capsys.readouterr().err
    assert run("convert", str(folder / "non"), str(folder / "new"))[0] == 1
    assert sorted(folder.rglob("*")) == before
