"""Exports of runs: their own base, as the recipe has it, and their own tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay import AutoPeftModelForCausalLM, export
from inlay.errors import ConfigError, CorruptFileError, MissingFileError, StateError
from inlay.runs.exports import export_source
from inlay.runs.run import FINISHED, Run, hashes
from inlay.train.training import train
from tests.train import tiny

IDS = {"input_ids": torch.arange(4, 20)[None]}
MINE = "{{ 'the template of this run' }}"


def quiet(line: str) -> None: ...


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, runs/mine (LoRA, with a template of its own), runs/whole (all weights)."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "mine.jinja").write_text(MINE)
    short = {"train.max_steps": 4, "data.chat_template": str(folder / "mine.jinja")}
    train(tiny.recipe(folder, "runs/mine", **short), say=quiet)
    train(tiny.recipe(folder, "runs/whole", **short, **{"adapter.method": "full"}), say=quiet)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path


def test_merged(place: Path) -> None:
    run = Run.open(place / "runs/mine")
    made = run.export("merged")
    assert made.folder == run.folder / "merged" and made.difference is not None and made.difference.effect > 1e-3
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(made.folder), AutoTokenizer.from_pretrained(made.folder)
    torch.testing.assert_close(logits(plain.eval()), logits(run.load()[0]), rtol=1e-4, atol=1e-5)
    assert hashes(made.folder) == hashes(run.adapter) and tokenizer.chat_template == run.load_tokenizer().chat_template


def test_peft_keeps_template_and_hash(place: Path) -> None:
    run = Run.open(place / "runs/mine")
    made = run.export("peft")
    assert made.folder == run.folder / "peft" and made.rejections == []
    assert json.loads((made.folder / FINISHED).read_text()) == run.result
    assert hashes(made.folder) == hashes(run.adapter) == {k: run.result[k] for k in hashes(run.adapter)}
    assert not [p.name for p in made.folder.iterdir() if p.suffix == ".pt" or p.is_dir()]
    again = AutoPeftModelForCausalLM.from_pretrained(str(made.folder)).eval()
    assert torch.equal(logits(again), logits(run.load()[0]))
    # an adapter's folder exports as the run does, and is checked as the run's is
    assert export_source(made.folder, "merged").folder == run.folder / "peft-merged"
    (made.folder / "tokenizer.json").write_text((made.folder / "tokenizer.json").read_text() + " ")
    for to in ("peft", "merged"):
        with pytest.raises(CorruptFileError, match="is not the one that was trained with"):
            export_source(made.folder, to, place / "other")
    assert not (place / "other").exists()


def test_gguf(place: Path) -> None:
    pytest.importorskip("gguf", reason="writes the file")
    run = Run.open(place / "runs/mine")
    made = run.export("gguf", dtype="float32")
    assert (made.folder, made.file) == (run.folder / "gguf", "mine-float32.gguf") and made.difference is not None
    plain = AutoModelForCausalLM.from_pretrained(made.folder, gguf_file=made.file).eval()
    torch.testing.assert_close(logits(plain), logits(run.load()[0]), rtol=1e-4, atol=1e-5)
    read = AutoTokenizer.from_pretrained(made.folder, gguf_file=made.file)
    assert read.chat_template == run.load_tokenizer().chat_template
    alone = run.export("gguf-adapter")
    assert (alone.folder, alone.file) == (run.folder / "gguf-adapter", "mine-lora-float32.gguf")


def test_a_model_trained_in_full(place: Path) -> None:
    run = Run.open(place / "runs/whole")
    made = run.export("merged")
    assert made.difference is not None and made.difference.largest == 0 and made.difference.effect is None
    assert "the adapter" not in str(made) and hashes(made.folder) == hashes(run.adapter)
    mine, theirs = tiny.weights(made.folder), tiny.weights(run.adapter)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    pytest.importorskip("gguf", reason="writes the file")
    assert run.export("gguf").file == "whole-float32.gguf"
    narrow = run.export("merged", run.folder / "narrow", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(narrow.folder, dtype="auto").dtype == torch.bfloat16
    with pytest.raises(StateError, match="has no adapter: all weights were trained"):
        run.export("peft")
    with pytest.raises(ConfigError, match="A model without an adapter is merged or gguf"):
        run.export("gguf-adapter")
    assert not (run.folder / "peft").exists()


def test_the_base_may_be_elsewhere(place: Path, trained: Path) -> None:
    shutil.copytree(trained / "base", place / "moved")
    made = export_source(place / "runs/mine", "merged", place / "out", base=str(place / "moved"))
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(made.folder).eval()),
        logits(Run.open(place / "runs/mine").load()[0]),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ConfigError, match="None for 'peft': the adapter stays as it is"):
        export_source(place / "runs/mine", "peft", place / "other", base=str(place / "moved"))


def test_a_quantised_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="quantises the base")
    recipe = tiny.recipe(
        tmp_path, **{"model.quantize": "nf4", "train.max_steps": 3, "train.gradient_checkpointing": True}
    )
    run = train(recipe, say=quiet)
    made = run.export("merged")
    assert made.notes[0].startswith("the base is quantised; what is written is dense") and made.difference is not None
    plain = AutoModelForCausalLM.from_pretrained(made.folder).eval()
    assert not hasattr(plain.config, "quantization_config")
    torch.testing.assert_close(logits(plain), logits(run.load()[0]), rtol=1e-3, atol=1e-3)


def test_a_base_in_a_gguf_file(tmp_path: Path, trained: Path) -> None:
    """transformers reads it into dense weights, and marks the model as quantised."""
    pytest.importorskip("gguf", reason="writes the file")
    model, tokenizer = (cls.from_pretrained(trained / "base") for cls in (AutoModelForCausalLM, AutoTokenizer))
    base = export(model, "gguf", tmp_path / "gguf", tokenizer=tokenizer)
    named = {"model.name": str(base.folder), "model.gguf_file": base.file}
    run = train(tiny.recipe(tmp_path, **named, **{"train.max_steps": 3}), say=quiet)
    wanted = logits(run.load()[0])
    for made in (run.export("merged"), run.export("merged", tmp_path / "narrow", dtype="bfloat16")):
        plain = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
        assert not hasattr(plain.config, "quantization_config") and made.difference is not None
        torch.testing.assert_close(logits(plain), wanted, rtol=0, atol=0.1 if "narrow" in str(made.folder) else 1e-4)
    assert run.export("gguf").difference is not None


def test_prompts_cannot_be_merged(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path, **{"adapter.method": "prompt_tuning", "train.max_steps": 2}), say=quiet)
    for to in ("merged", "gguf"):
        with pytest.raises(StateError, match=r"cannot be merged\. The form 'peft' needs no merging\."):
            run.export(to)
    assert run.export("peft").rejections[0].startswith("peft_type is 'PROMPT_TUNING'")
    assert sorted(p.name for p in run.folder.glob("*") if p.is_dir()) == ["adapter", "checkpoints", "peft"]


def test_what_is_refused_is_refused_before_anything_is_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inlay.runs.opened.Source.open", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"to='ggfu' is not allowed: .* Did you mean 'gguf'"):
        export_source(place / "runs/mine", "ggfu")
    (place / "full").mkdir()
    (place / "full" / "x").touch()
    with pytest.raises(StateError, match="is there and not empty"):
        export_source(place / "runs/mine", "merged", place / "full")
    with pytest.raises(MissingFileError, match=r"There is no .*mien'.* Did you mean '.*mine'"):
        export_source(place / "runs/mien", "merged")
    (place / "runs/mine/adapter" / FINISHED).unlink()
    for to in ("merged", "peft"):
        with pytest.raises(StateError, match="has not ended"):
            export_source(place / "runs/mine", to)


def test_a_run_is_no_source_of_the_function_below(place: Path) -> None:
    """`inlay.export` knows no runs, and says what it takes."""
    with pytest.raises(MissingFileError, match="is not the folder of an adapter"):
        export(place / "runs/mine", "merged", place / "out")
