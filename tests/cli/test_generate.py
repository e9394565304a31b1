"""`inlay generate-instructions`, as a process that asks a fake endpoint over HTTP."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inlay import cli
from inlay.data import prepare
from tests.data.tokenizers import gpt2_like
from tests.selfinstruct.endpoint import KEY, SERVER_ERROR, FakeEndpoint, rate_limit
from tests.selfinstruct.test_pipeline import mixed

for needed in ("openai", "rapidfuzz", "numpy"):
    pytest.importorskip(needed, reason="needs the extra generate")

SRC = Path(__file__).parents[2] / "src"
ENV = {"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin", "HOME": "/tmp", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def line(folder: Path, server: FakeEndpoint, *more: Any) -> list[str]:
    options = ["--out", folder / "rows.jsonl", "--endpoint", server.url, "--model", "m", "--key-env", "MINE", *more]
    return ["generate-instructions", *map(str, options)]


def start(args: list[str], key: str | None = KEY) -> subprocess.Popen[str]:
    env = ENV if key is None else {**ENV, "MINE": key}
    command = [sys.executable, "-c", "from inlay.cli import main; main()", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def run(args: list[str], key: str | None = KEY) -> tuple[int, str, str]:
    process = start(args, key)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def done(folder: Path) -> int:
    """Calls that are done."""
    journal = folder / "rows.jsonl.journal"
    return journal.read_bytes().count(b'{"done": ') if journal.exists() else 0


def test_rows_the_report_and_the_command_that_trains(tmp_path: Path) -> None:
    with FakeEndpoint() as server:
        server.faults.extend([rate_limit(**{"retry-after": "0"}), SERVER_ERROR])
        prices = ("--prompt-price", 1, "--completion-price", 2, "--concurrency", 2, "--temperature", 0.5)
        code, out, err = run(line(tmp_path, server, "--count", 10, "--to-json", tmp_path / "regen.json", *prices))
    assert code == 0 and server.refused == [429, 500], err
    rows = read(tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "regen.json").read_text()) == rows and len(rows) >= 10
    assert {request["temperature"] for _, request, _ in server.served} == {0.5}
    assert f"{len(rows)} rows ({len(rows)} new) from" in out and re.search(r"tokens, 0\.\d+ spent\.", out)
    assert f"They are in {tmp_path}/rows.jsonl and {tmp_path}/regen.json." in out
    assert out.endswith(f"    inlay train --model MODEL --data {tmp_path}/rows.jsonl\n")
    told = err.splitlines()
    assert told[0] == "0/10 rows  0 calls  0 + 0 tokens"
    assert any(re.fullmatch(r"asking again in \d s, as the model answered: 429: Rate limit reached", t) for t in told)
    assert any(
        re.fullmatch(r"asking again in \d s, as the model answered: 500: The server had an error", t) for t in told
    )
    assert KEY not in out + err + (tmp_path / "rows.jsonl.journal").read_text()
    prepared = prepare(tmp_path / "rows.jsonl", gpt2_like())
    assert prepared.report.format == "alpaca" and len(prepared) == len(rows) and not prepared.report.dropped


def test_a_refused_key_ends_it_at_once(tmp_path: Path) -> None:
    with FakeEndpoint() as server:
        code, out, err = run(line(tmp_path, server), key="sk-wrong-0123456789")
    assert code == 1 and out == "" and len(server.refused) <= 5 and "sk-wrong" not in err
    assert err.splitlines()[-1].startswith("inlay: The endpoint refused the API key (401). Check")


@pytest.mark.parametrize("name", ["MISSING", KEY])
def test_the_key_comes_from_a_variable_only(tmp_path: Path, name: str) -> None:
    with FakeEndpoint() as server:
        args = [name if text == "MINE" else text for text in line(tmp_path, server)]
        code, _, err = run(args, key=None)
    assert code == 2 and not server.served + server.refused
    assert err.startswith("inlay: The variable that --key-env names is not set: export it, and give its name here")
    assert name not in err and not list(tmp_path.iterdir())


def test_sigkill_and_the_same_command_goes_on(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "calm").mkdir()
    with FakeEndpoint(write=mixed, delay=lambda prompt: 0.02 + rng.random() / 30) as server:
        for _ in range(3):
            before = done(tmp_path)
            process = start(line(tmp_path, server, "--count", 60))
            deadline = time.monotonic() + 30
            while done(tmp_path) <= before + 1 and time.monotonic() < deadline:
                time.sleep(0.002)
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        code, out, err = run(line(tmp_path, server, "--count", 60))
        assert code == 0, err
        again = len(server.prompts) - len(set(server.prompts))
        assert run(line(tmp_path / "calm", server, "--count", 60))[0] == 0
    rows = read(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "calm" / "rows.jsonl").read_bytes()
    assert again <= 3 * 5, "at most the calls that were on their way are made again"
    assert re.match(rf"{len(rows)} rows \(\d+ new\) from", out) and f"{len(rows)} rows ({len(rows)} new)" not in out


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_says_the_command_that_goes_on(tmp_path: Path) -> None:
    with FakeEndpoint(delay=lambda prompt: 0.05) as server:
        args = line(tmp_path, server, "--count", 10**6)
        process = start(args)
        deadline = time.monotonic() + 30
        while len(server.served) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130 and out == "", err
        assert err.endswith(f"\nStopped; what was answered is kept. To go on:\n    inlay {' '.join(args)}\n")
        kept = len(read(tmp_path / "rows.jsonl"))
        assert kept and run([*args[:-1], str(kept + 4)])[0] == 0
    rows = read(tmp_path / "rows.jsonl")
    assert len(rows) >= kept + 4 and len({row["instruction"] for row in rows}) == len(rows)


def test_the_end_of_the_budget_keeps_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    with FakeEndpoint() as server:
        args = line(tmp_path, server, "--count", 400, "--max-tokens", 300, "--concurrency", 1)
        code, out, _ = run([*args, "--budget-tokens", "9000"])
        assert code == 0 and "Stopped: the next call might pass the budget." in out
        assert "To go on, give the same command with a larger budget:\n    inlay generate-instructions " in out
        before = read(tmp_path / "rows.jsonl")
        code, out, _ = run([*args, "--budget-tokens", "12000", "--json"])
    report = json.loads(out)
    assert code == 0 and report["stopped"] == "budget" and report["output"] == str(tmp_path / "rows.jsonl")
    assert report["prompt_tokens"] + report["completion_tokens"] <= 12000
    rows = read(tmp_path / "rows.jsonl")
    assert 0 < len(before) < len(rows) == report["rows"] and rows[: len(before)] == before


def test_answers_of_no_use_end_it_with_code_1(tmp_path: Path) -> None:
    with FakeEndpoint(write=lambda prompt: "I am sorry.") as server:
        code, out, _ = run(line(tmp_path, server, "--patience", 3, "--concurrency", 1, "--api", "completions"))
    assert code == 1 and out.startswith("0 rows (0 new) from 3 calls; dropped: 15 malformed;")
    assert "Stopped: the latest answers held nothing that could be kept." in out and "inlay train" not in out


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_model_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.train import tiny

    tiny.base(tmp_path / "base")
    seed = {"instruction": "Count to three.", "instances": [{"input": "", "output": "1 2 3"}]}
    (tmp_path / "seeds.jsonl").write_text(json.dumps(seed) + "\n")
    (tmp_path / "head.txt").write_text("Go on:\n")
    small = ["--seeds", tmp_path / "seeds.jsonl", "--prompt", tmp_path / "head.txt", "--shots", 1, "--max-tokens", 16]
    args = ["--out", tmp_path / "rows.jsonl", "--model", tmp_path / "base", "--patience", 2, *small]
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate-instructions", *map(str, args)])
    out = capsys.readouterr().out
    assert caught.value.code == 1 and "0 rows (0 new) from 2 calls" in out
    settings = json.loads((tmp_path / "rows.jsonl.journal").read_text().splitlines()[0])["settings"]
    assert settings["model"] == str(tmp_path / "base") and settings["sampling"]["max_tokens"] == 16


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "m", "--batch", "5"], "--batch is about an endpoint, and there is none: give --endpoint URL"),
        (["--model", "m", "--extra", "a=1"], "--extra is about an endpoint"),
        (["--model", "m", "--endpoint", "http://localhost:1", "--chat"], "--chat is about a model in this process"),
        (
            ["--model", "m", "--endpoint", "http://localhost:1", "--batch", "5"],
            "batch=5 is not allowed: expected 1 for",
        ),
        (["--model", "m", "--endpoint", "openai"], "No API key: set the variable OPENAI_API_KEY"),
        (["--model", "m", "--temperature", "-1"], "temperature=-1.0 is not allowed"),
        (["--model", "m", "--budget-money", "1"], "money is limited without prices"),
        (["--model", "m", "--extra", "logit_bias"], "--extra 'logit_bias' is not allowed: expected NAME=VALUE"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate-instructions", "--out", str(tmp_path / "rows.jsonl"), *more])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith("inlay: ") and message in err and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="terminals of POSIX")
    with FakeEndpoint(delay=lambda prompt: 0.1) as server:
        server.faults.append(rate_limit(**{"retry-after": "1"}))
        inner, outer = pty.openpty()
        command = [sys.executable, "-c", "from inlay.cli import main; main()", *line(tmp_path, server, "--count", 30)]
        env = {**ENV, "MINE": KEY, "TERM": "xterm", "COLUMNS": "100"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=outer, text=True, env=env)
        os.close(outer)
        shown = b""
        while True:
            try:
                part = os.read(inner, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(inner)
        out, _ = process.communicate(timeout=30)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
    assert process.returncode == 0 and "rows (" in out, text
    assert re.search(r"rows ━+.* +\d+/30", text) and "asking again in 1 s" in text and "tokens" in text
