"""What a SOURCE is, and what it is not: each fault one sentence, with the nearest run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.errors import BaseMismatchError, ConfigError, CorruptFileError, FileError, MissingFileError, StateError
from inlay.runs.opened import Opened, adapter_folder, find_source, open_source
from inlay.runs.run import Run
from inlay.train.training import train
from tests.train import tiny

IDS = {"input_ids": torch.arange(4, 12)[None]}


def quiet(line: str) -> None: ...


def logits(model: object) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS).logits  # type: ignore[operator, no-any-return]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, runs/mine (LoRA), runs/whole (all weights)."""
    folder = tmp_path_factory.mktemp("opened")
    train(tiny.recipe(folder, "runs/mine", **{"train.max_steps": 4}), say=quiet)
    train(tiny.recipe(folder, "runs/whole", **{"train.max_steps": 4, "adapter.method": "full"}), say=quiet)
    return folder


@pytest.mark.parametrize("inside", ["", "adapter"])
def test_a_run(place: Path, inside: str) -> None:
    opened = open_source(place / "runs/mine" / inside)
    wanted, tokenizer = Run.open(place / "runs/mine").load()
    assert isinstance(opened, Opened) and opened.run is not None and opened.run.folder == place / "runs/mine"
    assert (opened.name, opened.format) == ("mine", "alpaca") and not opened.model.training
    assert opened.tokenizer.chat_template == tokenizer.chat_template
    assert torch.equal(logits(opened.model), logits(wanted))
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    assert torch.equal(logits(opened.base_model()), logits(base))
    assert opened.base_model() is opened.model.unload()


def test_a_run_on_a_base_that_is_loaded(place: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    opened = open_source(place / "runs/mine", base=base)
    assert opened.base_model() is base
    assert torch.equal(logits(opened.model), logits(Run.open(place / "runs/mine").load()[0]))
    by_name = open_source(place / "runs/mine", base=place / "base")
    assert torch.equal(logits(by_name.model), logits(opened.model))


def test_a_run_of_all_weights(place: Path) -> None:
    for folder in (place / "runs/whole", place / "runs/whole/model"):
        opened = open_source(folder)
        assert opened.name == "whole" and opened.format == "alpaca"
        assert not torch.equal(logits(opened.model), logits(opened.base_model()))
    with pytest.raises(ConfigError, match=r"base=.* is not allowed: expected None: .* is a whole model"):
        open_source(place / "runs/whole", base="x")


def test_an_adapters_folder(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs/mine/adapter", tmp_path / "mine-adapter")
    opened = open_source(tmp_path / "mine-adapter")
    assert (opened.name, opened.format, opened.run) == ("mine-adapter", "alpaca", None)
    assert torch.equal(logits(opened.model), logits(open_source(place / "runs/mine").model))
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    assert open_source(tmp_path / "mine-adapter", base=base).base_model() is base
    template = tmp_path / "mine-adapter/chat_template.jinja"
    template.write_text("other")
    with pytest.raises(CorruptFileError, match="chat_template_sha256 differs"):
        open_source(tmp_path / "mine-adapter")


def test_an_adapters_folder_that_has_no_tokenizer_uses_its_bases(place: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        shutil.copy(place / "runs/mine/adapter" / name, tmp_path / "bare")
    opened = open_source(tmp_path / "bare")
    assert opened.format == "plain" and len(opened.tokenizer) == len(open_source(place / "base").tokenizer)


def test_a_model(place: Path) -> None:
    opened = open_source(place / "base")
    assert (opened.name, opened.format, opened.run) == ("base", "plain", None)
    assert opened.base_model() is opened.model and not opened.model.training


def test_where_the_adapter_is(place: Path) -> None:
    adapter = place / "runs/mine/adapter"
    assert adapter_folder(place / "runs/mine") == adapter_folder(adapter) == adapter
    assert adapter_folder(place / "runs/mine/checkpoints/checkpoint-3").name == "checkpoint-3"


def test_what_is_no_source_is_one_sentence(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    kinds = r"of a run \(resolved.yaml\), of an adapter \(adapter_config.json\)"
    for text in ("runs/mnie", "mine", "other/mine", "no.such/at/all/mine"):
        with pytest.raises(MissingFileError, match=rf"^There is no '{text}': .*{kinds}.*Did you mean 'runs/mine'\?$"):
            find_source(text)
        with pytest.raises(MissingFileError, match=rf"There is no folder '{text}'.*Did you mean 'runs/mine'\?$"):
            adapter_folder(text)
    with pytest.raises(MissingFileError, match=r"or a model's name\. The runs here are 'runs/mine', 'runs/whole'\.$"):
        find_source("zzzzqqqq")
    for find in (find_source, adapter_folder):
        with pytest.raises(MissingFileError, match=r"'runs' holds .*The runs in it are 'runs/mine', 'runs/whole'"):
            find("runs")
        with pytest.raises(FileError, match="holds no"):
            find(tmp_path)
    with pytest.raises(StateError, match="has no adapter: all weights were trained"):
        adapter_folder("runs/whole")
    with pytest.raises(MissingFileError, match="holds no adapter"):
        adapter_folder("base")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"or a model's name\.$"):
        find_source("mine")


def test_a_run_that_has_not_ended(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs/mine", tmp_path / "half")
    (tmp_path / "half/adapter/inlay_run.json").unlink()
    for find in (find_source, adapter_folder):
        with pytest.raises(StateError, match=r"has not ended: inlay train .*recipe.yaml"):
            find(tmp_path / "half")
    shutil.rmtree(tmp_path / "half/adapter")
    with pytest.raises(StateError, match="has not ended"):
        adapter_folder(tmp_path / "half")


def test_another_base_is_refused(place: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(place / "runs/whole/model")
    with pytest.raises(BaseMismatchError):
        open_source(place / "runs/mine", base=other)


def test_an_adapters_folder_of_another_base_says_so(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs/mine/adapter", tmp_path / "moved/adapter")
    assert find_source(tmp_path / "moved/adapter").name == "moved"
    with pytest.raises(BaseMismatchError):
        open_source(tmp_path / "moved", base=place / "runs/whole/model")
    with pytest.raises(MissingFileError, match="cannot be loaded"):
        open_source(tmp_path / "moved", base=tmp_path / "nowhere")
