"""The command line's frame, and `inlay train`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay import cli
from inlay.cli.recipes import assignments
from inlay.errors import ConfigError
from inlay.io.plain import write_yaml
from inlay.runs.run import Run
from tests.train import tiny

SRC = Path(__file__).parents[2] / "src"


def run(*args: str) -> tuple[int, str]:
    """Exit code of a command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    code = caught.value.code
    return code if isinstance(code, int) else 0, ""


def test_help_names_every_command_and_imports_nothing_large() -> None:
    code = (
        "import sys\nfrom inlay.cli import main, COMMANDS\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])\n"
        "print([c for c in COMMANDS])"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "100"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert out.splitlines()[-2] == "[]"
    assert all(f" {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(command, "--help")
    assert code == 0 and f"Usage: inlay {command}" in capsys.readouterr().out


def test_a_wrong_recipe_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: {name: m}\ndata: {train: d}\ntrain: {learning_rate: 1}\nout: x\n")
    assert run("train", str(file))[0] == 2
    err = capsys.readouterr().err
    assert err == "inlay: recipe.yaml: train.learning_rate is not a key of a recipe. Did you mean 'train.lr'?\n"
    with pytest.raises(ConfigError):
        cli.main(["--debug", "train", str(file)])


def test_other_errors_have_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", str(tmp_path / "no.yaml"))[0] == 1
    assert capsys.readouterr().err.startswith("inlay: There is no file")


def test_without_a_recipe_model_and_data_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--data", "d.jsonl")[0] == 2
    assert "Give a recipe, or --model" in capsys.readouterr().err


def test_assignments_are_yaml() -> None:
    given = ["train.lr=1e-4", "adapter.target_modules=[q_proj, v_proj]", "out=a=b", "data.eval="]
    assert assignments(given) == {
        "train.lr": 1e-4,
        "adapter.target_modules": ["q_proj", "v_proj"],
        "out": "a=b",
        "data.eval": None,
    }
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        assignments(["train.lr"])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_flags_alone_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.base(tmp_path / "base")
    tiny.rows(tmp_path / "rows.jsonl", 8)
    args = ["--model", "base", "--data", "rows.jsonl", "--method", "ia3", "--set", "train.device=cpu"]
    assert run("train", *args)[0] == 0
    found = Run.open(tmp_path / "runs" / "rows-ia3")
    assert found.finished and found.recipe.adapter.method == "ia3"
    assert (found.folder / "recipe.yaml").read_text().startswith("model:\n  name: base\n")
    assert "Finished" in capsys.readouterr().err


def test_ctrl_c_in_a_terminal_and_the_command_it_prints(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"train.epochs": 2000, "train.log_every": 1})
    write_yaml(tmp_path / "recipe.yaml", recipe.model_dump(mode="json", exclude_unset=True))
    env = {**os.environ, "PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from inlay.cli import main; main()", "train", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 60
    while not (Path(recipe.out) / "checkpoints" / "checkpoint-3").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.rstrip().endswith(f"inlay train {Path(recipe.out) / 'recipe.yaml'}") and "Traceback" not in err
    assert Run.open(recipe.out).checkpoints()[0] and not Run.open(recipe.out).finished


def test_warnings_of_inlay_are_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import types
    import warnings

    from inlay.errors import InlayWarning

    def command() -> None:
        """Warns."""
        warnings.warn("beware", InlayWarning, 1)
        warnings.warn("foreign", RuntimeWarning, 1)

    monkeypatch.setitem(sys.modules, "warns", types.SimpleNamespace(command=command))
    monkeypatch.setitem(cli.COMMANDS, "warns", "warns:command")
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda m, c, f, n, *rest: sys.stderr.write(warnings.formatwarning(m, c, f, n))
        assert run("warns")[0] == 0
    ours, foreign, *_ = capsys.readouterr().err.splitlines()
    assert ours == "WARNING: beware" and foreign.endswith("RuntimeWarning: foreign")
    assert warnings.formatwarning is before
