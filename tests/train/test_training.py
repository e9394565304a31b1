"""One run from recipe to folder: what is trained, what remains, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.errors import ConfigError, DataError, MissingFileError, NumericsError, StateError
from inlay.runs.run import Run
from inlay.train.training import train
from tests.data.tokenizers import gpt2_like
from tests.train import tiny


def quiet(line: str) -> None: ...


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3", "prefix_tuning", "vera", "full"])
def test_a_run_learns_and_leaves_its_record(tmp_path: Path, method: str) -> None:
    recipe = tiny.recipe(tmp_path, **{"adapter.method": method, "data.eval": 0.2, "train.seed": 5})
    said: list[str] = []
    run = train(recipe, say=said.append)
    assert run.finished and Run.open(run.folder).recipe.resolved() == recipe.resolved()
    names = {p.name for p in run.folder.iterdir()} - {".lock"}
    result = "model" if method == "full" else "adapter"
    assert run.adapter.name == result
    assert {"checkpoints", "recipe.yaml", "resolved.yaml", "environment.json", "metrics.jsonl", result} <= names
    losses = [m["loss"] for m in run.metrics() if "loss" in m]
    evaluated = [m["eval_loss"] for m in run.metrics() if "eval_loss" in m]
    assert [m["step"] for m in run.metrics() if "eval_loss" in m] == [0, 3, 6, 9, 12]  # 0: the base
    assert len(losses) == 6 and evaluated[-1] < evaluated[0]
    assert run.result["eval_loss"] == min(evaluated) and run.result["format"] == "alpaca"
    first = next(m for m in run.metrics() if "loss" in m)
    assert first["tokens_per_second"] > 0 and first["memory_bytes"] > 0 and first["epoch"] > 0
    environment = run.environment
    assert environment["data"]["train"]["rows"] == 24 and environment["data"]["eval"]["rows"] == 6
    assert environment["torch"] == torch.__version__ and environment["seed"] == 5
    assert said[-1] == f"Finished: '{run.adapter}'."
    model, tokenizer = run.load()
    assert not model.training and tokenizer.chat_template == gpt2_like().chat_template


def test_what_is_loaded_is_what_was_trained(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path), say=quiet)
    model, _ = run.load()
    base = run.load_base()
    ids = {"input_ids": torch.arange(4, 12)[None]}
    with torch.no_grad():
        assert not torch.equal(model(**ids).logits, base(**ids).logits)
        with model.disable_adapter():
            assert torch.equal(model(**ids).logits, base(**ids).logits)


def test_full_training_moves_every_kind_of_weight(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path, **{"adapter.method": "full"}), say=quiet)
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "base", run.adapter))
    assert before.keys() == after.keys()
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_a_quantised_base_trains_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = train(tiny.recipe(tmp_path, **{"model.quantize": "nf4", "train.gradient_checkpointing": True}), say=quiet)
    losses = [m["loss"] for m in run.metrics() if "loss" in m]
    assert losses[-1] < losses[0]
    model, _ = run.load()
    assert {type(m).__name__ for m in model.modules()} & {"Linear4bit", "LoraLinear4bit"}


def test_packing_trains_on_the_same_tokens_in_fewer_steps(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path, **{"data.packing": True, "data.max_length": 256, "train.batch": 1}), say=quiet)
    plain = train(tiny.recipe(tmp_path, "plain", **{"train.batch": 1}), say=quiet)
    assert run.result["steps"] < plain.result["steps"]


def test_a_finished_run_says_so_and_fresh_starts_over(tmp_path: Path) -> None:
    recipe, said = tiny.recipe(tmp_path), list[str]()
    run = train(recipe, say=quiet)
    before, stamp = tiny.weights(run.adapter), (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    train(recipe, say=said.append)
    assert said == [f"The run in '{run.folder}' is finished. Nothing was done; --fresh trains it again."]
    assert (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    train(tiny.recipe(tmp_path, **{"train.lr": 0.02}), fresh=True, say=quiet)
    assert Run.open(run.folder).recipe.train.lr == 0.02
    assert any(not torch.equal(a, before[n]) for n, a in tiny.weights(run.adapter).items())


def test_prompts_are_answered_before_and_after(tmp_path: Path) -> None:
    changes = {"watch.prompts": ["Count to 3."], "watch.max_new_tokens": 4}
    run = train(tiny.recipe(tmp_path, "watched", **changes), say=quiet)
    before, after = run.samples()
    assert before["step"] == 0 and "before" in before and after["step"] == 16 and "after" in after
    silent = train(tiny.recipe(tmp_path), say=quiet)
    watched = tiny.weights(run.adapter)
    assert all(torch.equal(w, watched[n]) for n, w in tiny.weights(silent.adapter).items())


def test_early_stopping_ends_the_run_with_the_best_adapter(tmp_path: Path) -> None:
    changes = {"data.eval": 0.2, "train.early_stopping": 1, "train.lr": 3.0, "train.epochs": 20}
    run = train(tiny.recipe(tmp_path, **changes, **{"train.scheduler": "constant"}), say=quiet)
    evaluated = {m["step"]: m["eval_loss"] for m in run.metrics() if "eval_loss" in m and m["step"]}
    assert run.result["steps"] == max(evaluated) < 120
    assert evaluated[run.result["step"]] == min(evaluated.values()) and run.result["step"] < run.result["steps"]


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"data.train": str(tmp_path / "poisoned.jsonl")})
    tiny.rows(tmp_path / "poisoned.jsonl")
    lines = (tmp_path / "poisoned.jsonl").read_text().splitlines()
    lines[7] = json.dumps({"instruction": "Say", "output": "<|im_start|> it"})
    (tmp_path / "poisoned.jsonl").write_text("\n".join(lines))
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][gpt2_like().convert_tokens_to_ids("<|im_start|>")] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(NumericsError, match=r"The loss of step \d+ is nan, on rows (\d+, 8|8, \d+) of .*poisoned"):
        train(recipe, say=quiet)
    run = Run.open(recipe.out)
    assert not run.finished and all(m.get("loss") is not None for m in run.metrics() if "loss" in m)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    Path(recipe.out).mkdir()
    (Path(recipe.out) / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(StateError, match=r"holds no run, but thesis.tex: choose another folder"):
            train(recipe, fresh=fresh, say=quiet)


def test_what_is_missing_is_said_before_a_folder_is_made(tmp_path: Path) -> None:
    for changes, error, said in [
        ({"data.train": str(tmp_path / "no.jsonl")}, MissingFileError, "There is no file"),
        ({"model.name": str(tmp_path / "no")}, (MissingFileError, ConfigError), "model.name="),
        ({"data.eval": 30}, DataError, "data.eval=30 cannot be held out of 30 rows"),
    ]:
        recipe = tiny.recipe(tmp_path, **changes)
        with pytest.raises(error, match=said):
            train(recipe, say=quiet)
        assert not Path(recipe.out).exists()
