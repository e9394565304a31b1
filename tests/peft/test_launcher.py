"""The four ways to have `import peft` mean Inlay, and what they leave alone."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.peft import path

SRC = str(Path(inlay.__file__).parents[1])
ENV = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def python(*args: str, cwd: Path | None = None, paths: tuple[str, ...] = (SRC,), **more: Any) -> Any:
    """A process of this interpreter, with these folders on its path."""
    env = {**ENV, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd, env=env, **more)


def out(*args: str, **more: Any) -> str:
    """What a process prints that succeeds."""
    result = python(*args, **more)
    assert result.returncode == 0, result.stderr[-3000:]
    return str(result.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`there/script.py`, a module beside it, and one in the current folder."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "beside.py").write_text("x = 1\n")
    (tmp_path / "here.py").write_text("x = 1\n")
    (there / "script.py").write_text(
        "import sys, importlib.util as u\n"
        "print([sys.argv, sys.path, __name__, __file__, __spec__ is None, bool(u.find_spec('beside')), "
        "bool(u.find_spec('here')), sys.modules['__main__'].__dict__ is globals()])\n"
    )
    return tmp_path


@pytest.mark.parametrize("flags", [(), ("-P",)])
def test_a_script_finds_itself_as_python_would_run_it(folder: Path, flags: tuple[str, ...]) -> None:
    if flags and sys.version_info < (3, 11):
        pytest.skip("python -P came with 3.11")
    plain = ast.literal_eval(out(*flags, "there/script.py", "a", "--b", cwd=folder))
    ours = ast.literal_eval(out(*flags, "-m", "inlay.peft", "there/script.py", "a", "--b", cwd=folder))
    assert ours[1][0] == path()
    assert [ours[0], ours[1][1:], *ours[2:]] == plain
    assert plain[0] == ["there/script.py", "a", "--b"] and plain[-1] is True


def test_a_module_is_run_as_python_does(folder: Path) -> None:
    (folder / "mod.py").write_text("import sys, peft; print(sys.argv[1:], __spec__.name, peft.__provider__)\n")
    assert out("-m", "inlay.peft", "-m", "mod", "-x", cwd=folder) == "['-x'] mod inlay\n"


def test_an_archive_with_a_main_is_run(folder: Path) -> None:
    with zipfile.ZipFile(folder / "app.zip", "w") as archive:
        archive.writestr("__main__.py", "import peft; print(peft.__provider__)")
    assert out("-m", "inlay.peft", "app.zip", cwd=folder) == "inlay\n"


def test_exit_codes_and_errors_are_the_scripts(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    for code, expected in (("import sys; sys.exit(7)", 7), ("raise SystemExit('why')", 1), ("pass", 0)):
        script.write_text(code)
        assert python("-m", "inlay.peft", str(script)).returncode == expected
    script.write_text("def f():\n    raise KeyError('boom')\nf()\n")
    failed = python("-m", "inlay.peft", str(script))
    assert failed.returncode == 1 and failed.stderr.rstrip().endswith("KeyError: 'boom'")
    assert f'File "{script}", line 2, in f' in failed.stderr
    script.write_text("raise KeyboardInterrupt\n")
    assert python("-m", "inlay.peft", str(script)).returncode == -signal.SIGINT


def test_what_cannot_be_run_is_said_in_one_line(tmp_path: Path) -> None:
    for args, message, code in (
        (["missing.py"], "there is no file 'missing.py'", 2),
        (["-m", "no_such_module"], "there is no module 'no_such_module'", 1),
        (["-m", "json.no_such_module"], "there is no module 'json.no_such_module'", 1),
    ):
        result = python("-m", "inlay.peft", *args, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (code, f"python -m inlay.peft: {message}\n")
    assert "usage: python -m inlay.peft" in python("-m", "inlay.peft").stderr
    assert "usage: python -m inlay.peft" in out("-m", "inlay.peft", "--help")


def test_the_path_alone_does_it() -> None:
    folder = out("-m", "inlay.peft", "--path").strip()
    assert folder == path()
    assert out("-c", "import peft; print(peft.__provider__)", paths=(folder, SRC)) == "inlay\n"


def test_children_inherit_it(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import multiprocessing, subprocess, sys\n"
        "def provider(_):\n    import peft\n    return peft.__provider__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        print(pool.map(provider, [0]))\n"
        "    subprocess.run([sys.executable, '-c', 'import peft; print(peft.__provider__)'], check=True)\n"
    )
    assert out("-u", "-m", "inlay.peft", str(script)) == "['inlay']\ninlay\n"


def test_install_and_the_notebooks_extension() -> None:
    code = "import sys, inlay.peft as p; p.{}; p.install(); import peft\n"
    code += "print(peft.__provider__, sys.path.count(p.path()))"
    assert out("-c", code.format("install()")) == "inlay 1\n"
    assert out("-c", code.format("load_ipython_extension(None)")) == "inlay 1\n"


def refused(code: str) -> str:
    """What `install()` says after this code, which must leave everything as it was."""
    return out(
        "-c",
        f"import os, sys, types, inlay.peft\n{code}\nbefore = list(sys.path), dict(os.environ)\n"
        "try:\n    inlay.peft.install()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "assert before == (list(sys.path), dict(os.environ))",
    )


def test_after_peft_itself_it_is_too_late() -> None:
    said = refused("sys.modules['peft'] = types.ModuleType('peft')")
    assert said.startswith("StateError peft itself is imported already") and "restart the kernel" in said


def test_after_a_library_that_looked_for_peft_it_is_too_late() -> None:
    diffusers = (
        "sys.modules['diffusers.utils.import_utils'] = m = types.ModuleType('m'); m._peft_available = False\n"
        "sys.modules['trl.trainer.sft_trainer'] = t = types.ModuleType('t'); t.is_peft_available = bool"
    )
    said = refused(diffusers)
    assert said.startswith(
        "StateError diffusers.utils.import_utils, trl.trainer.sft_trainer were imported without peft"
    )
    assert "restart" in said


def test_transformers_looks_again() -> None:
    pytest.importorskip("transformers")
    code = (
        "import importlib.util as u, transformers.utils as t, inlay.peft\n"
        "real = u.find_spec\nu.find_spec = lambda name, *a: None if name == 'peft' else real(name, *a)\n"
        "t.is_peft_available.cache_clear()\nbefore = t.is_peft_available()\nu.find_spec = real\n"
        "inlay.peft.install()\nprint(before, t.is_peft_available())"
    )
    assert out("-c", code).splitlines()[-1] == "False True"


def test_nothing_named_peft_is_installed() -> None:
    """Inlay's own folder on the path, as when it is installed, shows no distribution peft; only `path()` does."""
    code = "import importlib.metadata as m; print([str(d._path) for d in m.distributions(path={!r}, name='peft')])"
    inside = [SRC, str(Path(inlay.__file__).parent), str(Path(inlay.__file__).parent / "peft")]
    assert out("-I", "-c", code.format(inside)) == "[]\n"
    assert "peft-0.21.2.dist-info" in out("-I", "-c", code.format([path()]))


def test_the_wheel_carries_the_folder() -> None:
    """hatch takes all that is under src/inlay and not ignored by git."""
    files = [p for p in Path(path()).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sorted(p.name for p in files) == ["METADATA", "RECORD", "__init__.py", "top_level.txt"]
    root = Path(SRC).parent
    if (root / ".git").exists():
        ignored = subprocess.run(["git", "check-ignore", *map(str, files)], cwd=root, capture_output=True, text=True)
        assert ignored.stdout == ""
    assert 'packages = ["src/inlay"]' in (root / "pyproject.toml").read_text()


def test_torchrun_starts_it(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("import os, sys, peft; print(peft.__provider__, os.environ['RANK'], sys.argv[1:])")
    start = ("-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", "0", "-m", "inlay.peft")
    assert "inlay 0 ['--x']" in out(*start, str(script), "--x")


def test_trainer_is_taught_once() -> None:
    """transformers has our classes from the shim already: no tuple of them, no second predicate."""
    pytest.importorskip("transformers")
    code = (
        "import sys; sys.path.insert(0, {!r})\nimport inlay.peft; inlay.peft.install()\n"
        "import transformers.trainer_utils as t, peft\nfrom tests.tiny import llama\n"
        "view = peft.get_peft_model(llama(), peft.LoraConfig(task_type='CAUSAL_LM'))\n"
        "print(t.PeftModel is peft.PeftModel, t.PeftMixedModel is peft.PeftModel, t._is_peft_model(view),"
        " t._is_peft_model(llama()))"
    )
    assert out("-c", code.format(str(Path(SRC).parent))).splitlines()[-1] == "True True True False"
