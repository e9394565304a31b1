"""`inlay eval` reads what is given and prints what the library gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.runs.run import Run
from tests.cli.line import command
from tests.runs import runs

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.made(tmp_path_factory.mktemp("eval"), "mine")


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


run = command("eval")


def test_a_run_on_the_rows_that_it_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs/mine", "--vs", "base") == 0
    printed = capsys.readouterr()
    found = Run.open("runs/mine").evaluate(say=runs.quiet)
    assert printed.out.split()[:5] == ["6", "rows", "base", "mine", "change"] and f"{found.loss:.4f}" in printed.out
    assert printed.err.splitlines()[0] == "Evaluating on the held-out rows of 'mine': 6 rows."


def test_a_plain_model_on_a_file_with_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("base", "--data", "rows.jsonl", "--limit", "3", "--metrics", "exact", "--max-new-tokens", "3")
    assert run(*args, "--out", "out/p.jsonl", "--json", "--batch", "2") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["from"] == "rows.jsonl" and found["columns"]["base"]["rows"] == 3
    assert found["columns"]["base"]["accuracy"] == 0.0
    lines = [json.loads(line) for line in Path("out/p.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == ["one two 0", "one two 1", "one two 2"]
    assert lines[1]["prompt"] == "Count to 1.\nin words" and list(lines[1]["answers"]) == ["base"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("runs/mine", "--out", "p.jsonl"), 2, "name one with --metrics"),
        (("runs/mine", "--metrics", "exat"), 2, "Did you mean 'exact'?"),
        (("base",), 2, "'base' has no rows held out (data.eval)"),
        (("runs/mine", "--data", "no.jsonl"), 1, "There is no file 'no.jsonl'"),
    ],
)
def test_errors_are_one_sentence(
    args: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inlay: ") and said in line
