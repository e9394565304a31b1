"""`inlay export`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.runs.run import Run
from inlay.train.training import train
from tests.cli.line import command
from tests.train import tiny

SRC = Path(__file__).parents[2] / "src"


def quiet(line: str) -> None: ...


run = command("export")


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return train(tiny.recipe(folder, "runs/mine", **{"train.max_steps": 3}), say=quiet).folder


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_merged_is_verified(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(mine, "--to", "merged", "--verify", "--out", tmp_path / "out") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"merged: {tmp_path / 'out'}" and "verified: logits differ by at most" in second
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(input_ids=ids).logits
        wanted = Run.open(mine).load()[0](input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_gguf_as_json(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="writes the file")
    assert run(mine, "--to", "gguf", "--dtype", "float16", "--out", tmp_path / "out", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["to"] == "gguf" and Path(printed["folder"], printed["file"]).is_file()
    assert printed["difference"]["dtype"] == "float16" and printed["rejections"] == []


def test_peft_beside_the_run(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(mine, "--to", "peft", "--no-verify") == 0
    assert capsys.readouterr().out == f"peft: {mine / 'peft'}\n"
    assert run(mine, "--to", "peft") == 1
    assert "is there and not empty" in capsys.readouterr().err


def test_faults_are_a_sentence(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(mine, "--to", "merged", "--tolerance", "0", "--dtype", "bfloat16", "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "inlay: What was written does not compute what base and adapter do" in err and "Traceback" not in err
    assert run(mine, "--to", "onnx", "--out", tmp_path / "out") == 2
    assert "inlay: to='onnx' is not allowed: expected one of ('merged', 'peft', 'gguf'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_under_the_name(mine: Path, tmp_path: Path) -> None:
    """SIGKILL when all is written but not verified."""
    code = (
        "import os, signal, inlay.exporting.merged as merged\n"
        "from dataclasses import replace\n"
        "import inlay.exporting.exports as exports\n"
        "def die(*args): os.kill(os.getpid(), signal.SIGKILL)\n"
        "exports._WHOLE['merged'] = replace(merged.MERGED, read=die)\n"
        f"from inlay.runs.run import Run\nRun.open({str(mine)!r}).export('merged', {str(tmp_path / 'out')!r})"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and left.suffix == ".part" and (left / "model.safetensors").exists()
    assert Run.open(mine).export("merged", tmp_path / "out").folder.is_dir()


def test_a_full_disk_leaves_nothing(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf", reason="writes the file")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OSError, match="No space left"):
        Run.open(mine).export("gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
