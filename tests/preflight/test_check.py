"""What `check` finds before anything is trained, and that `train` stops for the same reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay.data import Shown
from inlay.errors import DataError
from inlay.preflight import estimates
from inlay.preflight.check import Check, Row, check
from inlay.preflight.text import WIDTH, lines
from inlay.recipe.recipe import Recipe
from inlay.train.training import train
from tests.data.tokenizers import gpt2_like
from tests.train import tiny

SWAPPED = (
    "{% for m in messages %}{{ m.role + ': ' }}"
    "{% if m.role == 'user' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
ALL = SWAPPED.replace("m.role == 'user'", "true")
BARE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
ZEPHYR = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|im_end|>\n' }}{% endfor %}"


def talks(path: Path, count: int = 8, start: int = 0) -> Path:
    """Conversations of one question and one answer."""
    asked = "What comes after the number {}, if you please?"
    turns = [
        [
            {"role": "user", "content": asked.format(i)},
            {"role": "assistant", "content": f"It is number {i + 1}, my dear."},
        ]
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return path


def chat(folder: Path, **changes: Any) -> Recipe:
    return tiny.recipe(folder, **{"data.train": str(talks(folder / "talks.jsonl")), **changes})


def test_a_recipe_that_is_right(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"data.eval": 6})
    found = check(recipe, rows=2)
    assert found.ok and found.stops == [] and found.warnings == [] and found.unknown == {}
    assert found.report is not None and found.report.kept == 30 and found.held_out == 6
    assert len(found.rows) == 2 and found.rows[0].number == 1 and found.rows[0].runs[-1].trained
    assert found.room is not None and found.room.fits and found.duration is not None and found.duration.seconds > 0
    assert found.base == "LlamaForCausalLM, float32"
    assert not Path(recipe.out).exists() and sorted(p.name for p in tmp_path.iterdir()) == ["base", "rows.jsonl"]
    as_json = json.loads(json.dumps(found.to_dict()))
    assert as_json["ok"] and as_json["parameters"]["trained"] == found.parameters.trained  # type: ignore[union-attr]
    assert as_json["room"]["fits"] and as_json["data"]["kept"] == 30 and as_json["rows"][0]["runs"][0]["text"]


def test_the_text(tmp_path: Path) -> None:
    text = str(check(tiny.recipe(tmp_path, **{"data.eval": 6}), rows=1))
    own = [line for line in text.splitlines() if not line.startswith("  | ")]
    assert all(len(line) <= WIDTH for line in own)
    for part in (
        "format alpaca, found by the columns instruction, input, output",
        "30 of 30 rows kept; 6 to evaluate on",
        "every row: the end token '<|endoftext|>' is trained, and generation stops there",
        "rows        as the model sees them: [[trained]]",
        "  | ### Instruction:\n  | Count to 0.\n",
        "  | ### Response:[[one two 0<|endoftext|>]]",
        "parameters are trained",
        "activations",
        "steps of 4 rows",
        "Nothing stands in the way of training.",
    ):
        assert " ".join(part.split()) in " ".join(text.split()), part


def test_marks_are_others_where_the_text_has_them() -> None:
    rows = [Row(1, [Shown("[[a]] b ", False), Shown("c", True)], 3, 1)]
    found = Check(Recipe.make({"model.name": "m", "data.train": "d", "out": "o"}), rows=rows)
    assert "  | [[a]] b <<<c>>>" in str(found)
    (line,) = [line for line in lines(found, styled=True) if "[[a]]" in line.plain]
    assert line.plain == "  | [[a]] b c" and line.spans[-1].style == "bold green"


def test_long_texts_are_shortened() -> None:
    rows = [Row(1, [Shown("a" * 5000, False), Shown("b" * 650, True)], 3, 1)]
    text = str(Check(Recipe.make({"model.name": "m", "data.train": "d", "out": "o"}), rows=rows))
    assert "... 4,400 characters more ..." in " ".join(text.split())
    assert text.count("b") == 650 and 600 <= text.count("a") < 700


def test_everything_that_is_wrong_is_listed(tmp_path: Path) -> None:
    recipe = tiny.recipe(
        tmp_path,
        **{
            "data.train": str(tmp_path / "none.jsonl"),
            "adapter.target_modules": ["q_prj"],
        },
    )
    Path(recipe.out).mkdir()
    (Path(recipe.out) / "other.txt").write_text("mine")
    found = check(recipe)
    stops = "\n".join(found.stops)
    assert len(found.stops) == 3 and not found.ok and found.report is None and found.room is None
    assert "There is no file" in stops and "q_prj" in stops and "other.txt" in stops
    assert "Put right what is at the 3 STOPs, then train." in str(found)


def test_a_base_that_cannot_be_read(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"model.name": str(tmp_path / "no")})
    found = check(recipe)
    assert found.base is None and any("model.name=" in stop for stop in found.stops)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "no_such_model"}')
    (stop, *_) = check(tiny.recipe(tmp_path, **{"model.name": str(tmp_path / "strange")})).stops
    assert stop.startswith("model.name=") and "no_such_model" in stop


def test_an_evaluation_that_cannot_be_read_leaves_the_rest(tmp_path: Path) -> None:
    found = check(tiny.recipe(tmp_path, **{"data.eval": str(tmp_path / "no.jsonl")}))
    (stop,) = found.stops
    assert "no.jsonl" in stop and found.report is not None and found.room is not None


def stops_of(recipe: Recipe) -> str:
    """The one stop, which `train` raises too, before it has written anything."""
    (stop,) = check(recipe, rows=0).stops
    with pytest.raises(DataError) as caught:
        train(recipe, say=lambda line: None)
    assert stop == str(caught.value) and not Path(recipe.out).exists()
    return stop


def test_no_end_token(tmp_path: Path) -> None:
    stop = stops_of(chat(tmp_path, **{"data.chat_template": BARE}))
    assert stop.startswith("No row is trained to write an end token") and "data.chat_template" in stop


def test_no_chat_template(tmp_path: Path) -> None:
    tiny.base(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    stop = stops_of(chat(tmp_path))
    assert "the tokenizer has no chat template" in stop and "'plain'" in stop


@pytest.mark.parametrize("template", [SWAPPED, ALL])
def test_a_template_that_trains_what_the_user_says(template: str, tmp_path: Path) -> None:
    stop = stops_of(chat(tmp_path, **{"data.chat_template": template}))
    assert stop.startswith("Row 1 trains what the user says, 'What comes after the number 0, if you please?'.")
    assert "{% generation %}" in stop and stop.endswith("So it is in 8 of the first rows.")


def test_a_template_that_leaves_the_answer_out(tmp_path: Path) -> None:
    template = SWAPPED.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ '<|im_end|>' }}{% endgeneration %}"
    )
    assert stops_of(chat(tmp_path, **{"data.chat_template": template})).startswith(
        "Row 1 does not train what the assistant"
    )


def test_tokens_beyond_the_embeddings(tmp_path: Path) -> None:
    tiny.base(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": 100}))
    assert "token id" in stops_of(tiny.recipe(tmp_path)) and "100 embeddings" in stops_of(tiny.recipe(tmp_path))


def test_rows_beyond_the_positions(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny.base(tmp_path / "base")
    size = len(gpt2_like())
    GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=1, n_positions=32)).save_pretrained(
        tmp_path / "base"
    )
    stop = stops_of(tiny.recipe(tmp_path, **{"data.max_length": 64}))
    assert stop == "Rows have up to 64 tokens, the base 32 positions: set data.max_length=32."


def test_an_evaluation_of_rows_that_are_trained_on(tmp_path: Path) -> None:
    rows = tiny.rows(tmp_path / "rows.jsonl")
    same = tiny.rows(tmp_path / "same.jsonl", 3)
    assert "All 3 rows of the evaluation are trained on" in stops_of(tiny.recipe(tmp_path, **{"data.eval": str(same)}))
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    mixed = [lines[0], {**lines[1], "output": "other"}, {**lines[2], "instruction": "new"}]
    same.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    found = check(tiny.recipe(tmp_path, **{"data.eval": str(same)}))
    assert found.ok and found.found.shared == (1, 1)
    assert found.warnings == [
        "1 rows of the evaluation are trained on, too: its loss will look too good.",
        "1 rows of the evaluation have a prompt that is trained on with another answer (rows 2).",
    ]


def test_marks_of_another_models_template(tmp_path: Path) -> None:
    found = check(chat(tmp_path, **{"data.chat_template": ZEPHYR}))
    assert found.ok
    assert [w[:26] for w in found.warnings if "another model's template" in w] == [
        "Rows hold '<|user|>', which"[:26],
        "Rows hold '<|assistant|>', "[:26],
    ]


def test_rows_that_are_cut_within_a_character(tmp_path: Path) -> None:
    """Chinese is several tokens a character here, so what is trained ends with half of one."""
    rows = tmp_path / "adgen.jsonl"
    made = [{"content": "类型#裤", "summary": "版型设计" * (20 + i)} for i in range(4)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    found = check(tiny.recipe(tmp_path, **{"data.train": str(rows), "data.max_length": 95}))
    assert found.ok and found.report is not None and len(found.report.truncated) == 4
    assert "no row: an end token is trained" in str(found) and "rows are cut at max_length=95" in found.warnings[0]


def test_an_end_token_at_which_generation_goes_on(tmp_path: Path) -> None:
    found = check(chat(tmp_path))
    assert found.ok and found.found.endless == ["<|im_end|>"]
    assert "Answers end with '<|im_end|>', but the base's generation does not stop there" in found.warnings[0]
    assert "generation does not stop there" in str(found)
    path = tmp_path / "base" / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "eos_token_id": [0, gpt2_like().convert_tokens_to_ids("<|im_end|>")]}))
    assert check(chat(tmp_path)).warnings == []


def test_a_run_that_was_begun_otherwise_is_told_of(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"train.max_steps": 1})
    train(recipe, say=lambda line: None)
    assert check(recipe).warnings == []
    (warning,) = check(tiny.recipe(tmp_path, **{"train.max_steps": 2})).warnings
    assert "was begun otherwise: train.max_steps: 1 -> 2" in warning


def test_what_does_not_fit_is_a_warning_with_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(tmp_path)
    room = check(recipe).room
    assert room is not None
    monkeypatch.setattr(estimates, "free_memory", lambda device: int(room.memory.total / estimates.ROOM) - 1000)
    found = check(recipe)
    assert found.ok and found.room is not None and not found.room.fits
    (warning,) = found.warnings
    assert warning.startswith("A step takes ") and warning.endswith(
        "This would fit: --set train.batch=1 --set train.accumulation=4"
    )
    monkeypatch.setattr(estimates, "free_memory", lambda device: 1000)
    (warning,) = check(recipe).warnings
    assert "Nothing that was tried makes it fit" in warning


def test_a_model_that_cannot_be_rehearsed_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, batch: object) -> None:
        raise RuntimeError("asks for values\nof tensors")

    monkeypatch.setattr(estimates.Rehearsal, "step", broken)
    found = check(tiny.recipe(tmp_path))
    assert found.ok and found.unknown == dict.fromkeys(("room", "duration"), "RuntimeError: asks for values")
    assert "memory      no estimate: RuntimeError: asks for values" in str(found)
