"""`inlay compare`, `inlay eval` and `inlay chat` read what is given and print what the library gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.comparison import Decoding
from inlay.runs.run import Run
from tests.cli.line import command
from tests.runs import runs

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.made(tmp_path_factory.mktemp("compare"), "mine", "talker")


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


run = command("compare")


def test_text_to_stdout_and_what_happens_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--prompt", "Count to 7.", "--prompt", "Count to 8.", "--max-new-tokens", "5")
    assert run("runs/mine", *args) == 0
    printed = capsys.readouterr()
    wanted = Run.open("runs/mine").compare(
        ["Count to 7.", "Count to 8."], decoding=Decoding(max_new_tokens=5), say=runs.quiet
    )
    assert printed.out == wanted.text() and "\x1b" not in printed.out
    assert printed.err.splitlines()[0] == "Asking the prompts given: 2."


def test_data_and_pages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("prompts.txt").write_text("Count to 7.\nCount to 8.\n")
    drawn = ("--temperature", "0.8", "--seed", "3", "--top-p", "0.9", "--max-new-tokens", "6", "--batch", "2")
    out = tmp_path / "new" / "page.html"
    given = ("runs/mine", "--with", "base, runs/talker", "--prompts", "prompts.txt", "--limit", "1", *drawn)
    assert run(*given, "--json", "--out", str(out), "--device", "cpu") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["columns"] == ["base", "mine", "talker"] and len(found["rows"]) == 1
    settings = {"max_new_tokens": 6, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    assert found["settings"] == {**settings, "format": "alpaca, messages", "from": "prompts.txt"}
    assert printed.err.endswith(f"Saved: {out}\n") and "Count to 7." in out.read_text()


def test_rows_bring_losses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs/mine", "--prompts", "rows.jsonl", "--limit", "2", "--max-new-tokens", "2") == 0
    printed = capsys.readouterr().out
    assert "reference: one two 1" in printed and "mean loss: base " in printed and "lowest loss: base " in printed


def test_without_prompts_it_says_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs/talker", "--max-new-tokens", "2") == 0
    assert capsys.readouterr().err.startswith("Asking the watch prompts of 'talker': 2.\n")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("runs/mnie",), 1, "There is no 'runs/mnie': expected the folder of a run"),
        (("runs/mine", "--prompt", "a", "--prompts", "b.txt"), 2, "--prompts and --prompt are both given"),
        (("runs/mine", "--prompt", "a", "--max-new-tokens", "0"), 2, "max_new_tokens=0 is not allowed"),
        (("runs/mine", "--with", "runs/minne"), 1, "Did you mean 'runs/mine'?"),
    ],
)
def test_errors_are_one_sentence(
    args: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inlay: ") and said in line
