"""Runs compared and evaluated over one base: each column is that model asked alone, in its own way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import inlay
from inlay.comparison import Comparison, Decoding
from inlay.data import prepare
from inlay.data.templates import PLAIN_CHAT, alpaca
from inlay.errors import BaseMismatchError, ConfigError, DataError, MissingFileError, StateError
from inlay.recipe.rows import load_rows
from inlay.runs.run import Run
from inlay.runs.together import compare_sources, evaluate_sources
from tests.runs import runs
from tests.runs.runs import quiet
from tests.train import tiny

SHORT = Decoding(max_new_tokens=5)
PROMPTS, REFERENCES = ["Count to 7.", "Count to 8."], ["one two 7", None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.made(tmp_path_factory.mktemp("together"), "mine", "talker", "whole")


def compared(place: Path, run: str = "mine", prompts: Any = PROMPTS, **options: Any) -> Comparison:
    return Run.open(place / "runs" / run).compare(prompts, **{"decoding": SHORT, "say": quiet, **options})


def column(found: Comparison, name: str) -> list[Any]:
    i = found.columns.index(name)
    return [(row.answers[i].text, row.answers[i].loss) for row in found.rows]


def test_the_columns_are_those_of_compare(place: Path) -> None:
    found = compared(place, references=REFERENCES)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(place / "base"), Run.open(place / "runs/mine").load()[1]
    options: dict[str, Any] = {"format": "alpaca", "decoding": SHORT}
    wanted = inlay.compare(base, [place / "runs/mine"], PROMPTS, tokenizer, REFERENCES, **options)
    assert found.columns == wanted.columns == ("base", "mine") and found.rows == wanted.rows
    assert column(found, "base") != column(found, "mine")
    assert found.settings["format"] == "alpaca" and found.settings["from"] == "the prompts given"


def test_each_is_asked_as_it_was_trained_and_the_base_as_the_first(place: Path) -> None:
    found = compared(place, with_=["base", place / "runs/talker", place / "runs/whole"])
    assert found.columns == ("base", "mine", "talker", "whole") and found.settings["format"] == "alpaca, messages"
    alone = compared(place, "talker", with_=["base"])
    assert column(found, "talker") == column(alone, "talker") and column(found, "base") != column(alone, "base")
    assert column(found, "whole") == column(compared(place, "whole", with_=[]), "whole")
    assert compared(place, with_=[]).columns == ("mine",)


def test_the_template_of_the_recipe_is_the_runs(place: Path) -> None:
    run = Run.open(place / "runs/talker")
    assert (run.adapter / "chat_template.jinja").read_text() == PLAIN_CHAT
    assert run.load_tokenizer().decode(run.asked(["Hi"])[0]) == "USER: Hi\nASSISTANT: "
    mine = Run.open(place / "runs/mine")
    assert mine.load_tokenizer().decode(mine.asked(["Hi"])[0]) == alpaca("Hi")


def test_adapters_stand_on_one_base_that_is_loaded_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.comparison import columns
    from inlay.recipe import base

    loaded, seen, load, write = list[Any](), list[int](), base.load_model, columns.write

    def loading(*args: Any) -> Any:
        loaded.append(args)
        return load(*args)

    def writing(model: Any, *args: Any) -> Any:
        seen.append(model.model.layers[0].self_attn.q_proj.weight.data_ptr())
        return write(model, *args)

    monkeypatch.setattr(base, "load_model", loading)
    monkeypatch.setattr(columns, "write", writing)
    compared(place, with_=["base", place / "runs/talker"])
    assert len(loaded) == 1 and len(seen) == 3 and len(set(seen)) == 1


def test_prompts_of_every_kind(place: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffCount to 7.\r\n\n  Count to 8.  \n")
    wanted = compared(place)
    assert compared(place, prompts=tmp_path / "p.txt").rows == wanted.rows
    one = compared(place, prompts=tmp_path / "p.txt", limit=1)
    assert one.rows == wanted.rows[:1]
    rows = [{"instruction": p, "output": "one two 7"} for p in PROMPTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    referred = compared(place, references=["one two 7"] * 2)
    tokenizer = Run.open(place / "runs/mine").load_tokenizer()
    for prompts in (rows, tmp_path / "rows.jsonl", str(tmp_path / "rows.jsonl"), prepare(rows, tokenizer)):
        found = compared(place, prompts=prompts)
        assert found.rows == referred.rows and all(row.best is not None for row in found.rows)
    assert compared(place, prompts=[{**row, "output": ""} for row in rows]).rows == wanted.rows
    said: list[str] = []
    assert compared(place, prompts=[*rows, {"instruction": "x", "output": 3}], say=said.append).rows == referred.rows
    assert "NOTE: left out   1: output is int, expected text (rows 3)" in said
    talk = compared(place, "talker", [[{"role": "user", "content": "Count to 7."}], "Count to 8."])
    assert talk.rows == compared(place, "talker").rows


def test_without_prompts_watch_prompts_or_held_out_rows(place: Path) -> None:
    said: list[str] = []
    found = compared(place, "talker", None, say=said.append)
    assert [row.prompt for row in found.rows] == ["Count to 3.", "Count to 4."]
    assert said[0] == "Asking the watch prompts of 'talker': 2." and found.settings["from"] in said[0]
    found = compared(place, "mine", None, say=said.append)
    run = Run.open(place / "runs/mine")
    _, held_out = load_rows(run.recipe, run.load_tokenizer())
    assert held_out is not None and len(held_out) == 6 == len(found.rows)
    lines = (place / "rows.jsonl").read_text().splitlines()
    assert [row.reference for row in found.rows] == [json.loads(lines[n - 1])["output"] for n in held_out.rows]
    with pytest.raises(ConfigError, match=r"has no rows held out \(data.eval\), so say what to ask"):
        compared(place, "whole", None)


def test_a_format_that_is_not_that_of_training_is_said(place: Path) -> None:
    said: list[str] = []
    compared(place, prompts=[{"question": "Count", "answer": "one"}], say=said.append)
    assert "NOTE: 'mine' is asked as 'question', but was trained on 'alpaca'." in said
    found = compared(place, format="question", say=said.append)
    assert (
        found.settings["format"] == "question"
        and said[-3].startswith("NOTE")
        and said[-2:] == ["  base ...", "  mine ..."]
    )
    said.clear()
    compared(place, with_=[place / "runs/talker"], say=said.append)
    assert not any("NOTE" in line for line in said)


def test_evaluations_are_those_of_evaluate(place: Path) -> None:
    run = Run.open(place / "runs/mine")
    model, tokenizer = run.load()
    _, held_out = load_rows(run.recipe, tokenizer)
    wanted = inlay.evaluate(model, held_out, tokenizer, ["exact"], decoding=SHORT)  # type: ignore[arg-type]
    assert run.evaluate(metrics=["exact"], decoding=SHORT, say=quiet) == wanted
    assert wanted.loss == pytest.approx(run.result["eval_loss"], rel=0.05)  # Trainer's, over batches
    both = evaluate_sources(run.folder, None, ["exact"], ["base", place / "runs/whole"], decoding=SHORT, say=quiet)
    assert list(both.columns) == ["base", "mine", "whole"] and both["mine"] == wanted
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    assert both["base"] == inlay.evaluate(base, held_out, tokenizer, ["exact"], decoding=SHORT)  # type: ignore[arg-type]
    assert both["base"].loss > both["mine"].loss
    some = run.evaluate(tiny.rows(place / "more.jsonl", 3, start=50), say=quiet)
    assert some.rows == 3 and run.evaluate(place / "more.jsonl", limit=2, say=quiet).rows == 2


def test_other_data_than_the_runs_have_no_held_out_rows(place: Path, tmp_path: Path) -> None:
    runs.made(tmp_path, "mine")
    tiny.rows(tmp_path / "rows.jsonl", start=1)
    with pytest.raises(StateError, match=r"are not those that .* was made with, so it cannot be told which"):
        Run.open(tmp_path / "runs/mine").evaluate(say=quiet)


def test_what_is_refused_is_refused_before_a_model_is_loaded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr("inlay.recipe.base.load_model", never)
    (tmp_path / "empty.txt").write_text("\n \n")
    for options, error, said in [
        ({"with_": "base"}, ConfigError, "expected a list of runs, and 'base'"),
        ({"with_": ["base", place / "runs/mnie"]}, MissingFileError, "Did you mean .*runs/mine"),
        ({"with_": [place / "runs/mine/adapter"]}, ConfigError, "is named twice"),
        ({"prompts": tmp_path / "no.txt"}, MissingFileError, "There is no file"),
        ({"prompts": tmp_path / "empty.txt"}, DataError, "has no prompts: expected one a line"),
        ({"prompts": []}, DataError, "There are no prompts"),
        ({"limit": 0}, ConfigError, "limit=0 is not allowed"),
        ({"format": "alpacca"}, ConfigError, "Did you mean 'alpaca'"),
    ]:
        with pytest.raises(error, match=said):
            compared(place, **options)
    with pytest.raises(ConfigError, match=r"names of .*Did you mean 'exact'"):
        Run.open(place / "runs/mine").evaluate(metrics=["exat"])
    with pytest.raises(ConfigError, match="is a model, which has no base beside it"):
        compare_sources(place / "base", PROMPTS)


def test_an_adapter_of_another_base_is_named_before_the_first_answer(place: Path, tmp_path: Path) -> None:
    tiny.base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.model.layers[0].self_attn.q_proj.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "base")
    runs.made(tmp_path, "mine")
    said: list[str] = []
    with pytest.raises(BaseMismatchError, match=r"is an adapter of another base than the others\. "):
        compared(place, with_=["base", tmp_path / "runs/mine"], say=said.append)
    assert said == ["Asking the prompts given: 2."]
