"""`inlay chat`: through a pipe, and on a terminal."""

from __future__ import annotations

import io
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inlay.comparison import Decoding
from inlay.comparison.text import safe
from inlay.runs.talk import talks
from tests.cli.line import exit_code
from tests.runs import runs

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.made(tmp_path_factory.mktemp("chat"), "mine", "talker")


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def chat(monkeypatch: pytest.MonkeyPatch, lines: str, *args: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return exit_code("chat", *args, "--max-new-tokens", "6")


def test_a_pipe_is_answered_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "Count to 3.\n\nAnd on\n/frobnicate now\n/reset\nAnd on\n/quit\nnever\n"
    assert chat(monkeypatch, lines, "runs/talker", "--vs", "base") == 0
    printed = capsys.readouterr()
    with talks("runs/talker", ["base"], decoding=Decoding(6)) as models:
        wanted = ""
        for line in ("Count to 3.", "And on", "/reset", "And on"):
            for model in models:
                if line == "/reset":
                    model.reset()
                else:
                    wanted += f"[{model.name}]\n{safe(model.ask(line))}\n"
    assert printed.out == wanted and printed.out.count("[base]") == 3
    assert "/frobnicate is not known: /reset forgets what was said, /quit ends." in printed.err
    assert "Forgotten." in printed.err and "stands alone" not in printed.err


def test_questions_that_stand_alone_are_told_and_one_model_has_no_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "Count to 3.\nCount to 3.", "runs/mine", "--temperature", "0") == 0
    printed = capsys.readouterr()
    half = len(printed.out) // 2
    assert printed.out[:half] == printed.out[half:] and "[mine]" not in printed.out
    assert "'mine' was not trained on conversations: each question stands alone." in printed.err


def test_a_question_that_is_too_long_does_not_end_the_talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "word " * 400 + "\nCount to 3.\n", "runs/mine") == 0
    printed = capsys.readouterr()
    assert "are allowed: 'mine' reads 256" in printed.err and len(printed.out) > 2


def test_a_run_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(monkeypatch, "", "runs/mien") == 1
    assert "Did you mean 'runs/mine'?" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a terminal of its own")
def test_a_terminal_has_a_prompt_and_ctrl_c_does_not_end_it(place: Path) -> None:
    import pty

    env = {**os.environ, "PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from inlay.cli import main; main()", "chat", "runs/mine", "--max-new-tokens", "4"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(place)
        os.execve(sys.executable, command, env)
    try:
        assert "/quit ends, Ctrl-C stops an answer." in read_until(terminal, "\n> ")
        os.write(terminal, b"Count to 3.\n")
        assert len(read_until(terminal, "\n> ")) > len("Count to 3.\r\n> ")
        os.write(terminal, b"\x03")
        read_until(terminal, "\n> ")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)


def read_until(terminal: int, end: str) -> str:
    """What is printed up to `end`."""
    return "".join(pieces_until(terminal, end))


def pieces_until(terminal: int, end: str) -> Iterator[str]:
    text, deadline = "", time.monotonic() + 120
    while end not in text:
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.1)[0]:
            piece = os.read(terminal, 4096).decode(errors="replace")
            text += piece
            yield piece
