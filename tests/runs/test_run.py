"""The folder of a run: opened, checked, its checkpoints told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from inlay.errors import CorruptFileError, MissingFileError, StateError
from inlay.io import plain
from inlay.recipe.recipe import Recipe
from inlay.runs.run import Run, is_whole, seal
from inlay.train.training import train
from tests.train import tiny


def quiet(line: str) -> None: ...


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"is not the folder of a run: it has no resolved.yaml"):
        Run.open(tmp_path)


def test_another_tokenizer_or_template_is_noticed(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path), say=quiet)
    template = run.adapter / "chat_template.jinja"
    before = template.read_text()
    template.write_text(before + " ")
    with pytest.raises(CorruptFileError, match="chat_template_sha256 differs"):
        run.load()
    template.write_text(before)
    run.load_tokenizer()
    with (run.adapter / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(CorruptFileError, match="tokenizer_sha256 differs"):
        run.load()


def test_a_run_that_has_not_ended_has_no_result(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path), say=quiet)
    (run.adapter / "inlay_run.json").unlink()
    with pytest.raises(StateError, match=r"has not ended: inlay train .*recipe.yaml"):
        run.load()


def test_a_checkpoint_is_whole_when_sealed_and_no_file_was_cut(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345")
    assert not is_whole(folder)
    seal(folder)
    assert is_whole(folder) and Run(tmp_path).checkpoints() == ([folder], [])
    (folder / "a.bin").write_bytes(b"123")
    assert not is_whole(folder) and Run(tmp_path).checkpoints() == ([], [folder])
    (folder / "a.bin").unlink()
    assert not is_whole(folder)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "x").write_text("x")
        seal(folder)
    (tmp_path / "checkpoints" / "checkpoint-best").mkdir()
    assert [p.name for p in Run(tmp_path).checkpoints()[0]] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_removing_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path), say=quiet)
    (run.folder / "notes.txt").write_text("mine")
    run.remove()
    assert not run.exists and {p.name for p in run.folder.iterdir() if not p.name.startswith(".")} == {"notes.txt"}


def test_lines_are_read_up_to_one_that_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    assert plain.read_lines(file) == []
    plain.append_line(file, {"step": 1})
    with file.open("a") as out:
        out.write('{"step": 2, "lo')
    assert plain.read_lines(file) == [{"step": 1}]


def test_the_command_that_goes_on_takes_flags_into_account(tmp_path: Path) -> None:
    """Flags beside a recipe that lies in the run's folder are in the resolved recipe alone."""
    recipe = tiny.recipe(tmp_path)
    folder = Path(recipe.out)
    folder.mkdir()
    plain.write_yaml(folder / "recipe.yaml", recipe.model_dump(mode="json", exclude_unset=True))
    run = train(tiny.recipe(tmp_path, **{"train.lr": 0.02, "train.epochs": 1}), say=quiet)
    assert run.command == f"train {folder}/resolved.yaml"
    again = Recipe.load(folder / "resolved.yaml")
    assert not again.changes(run.recipe.resolved()) and not run.recipe.changes(again.resolved())
    plain.write_yaml(folder / "recipe.yaml", run.recipe.model_dump(mode="json"))
    assert run.command == f"train {folder}/recipe.yaml"
    (folder / "recipe.yaml").unlink()
    assert run.command == f"train {folder}/resolved.yaml"
