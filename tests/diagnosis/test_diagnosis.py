"""What `inlay doctor` finds: every probe, what is missing, what fails, and that nothing secret is shown."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inlay.peft
from inlay.diagnosis import Diagnosis, Finding, diagnose, machine, packages, trials
from inlay.diagnosis.diagnosis import PROBES
from inlay.diagnosis.finding import BROKEN, NOTE, OK
from inlay.io import hub

ROOT = Path(__file__).parents[2]


def found(probe: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in probe()}


# ---------------------------------------------------------------------- the whole


def test_a_failing_probe_is_a_line_and_the_others_go_on() -> None:
    def good() -> Iterator[Finding]:
        yield Finding("machine", "python", "3.11")

    def bad() -> Iterator[Finding]:
        yield Finding("machine", "first", "seen")
        raise OSError("no such\ndevice")

    def leaves() -> Iterator[Finding]:
        raise SystemExit(3)
        yield

    made = diagnose([("machine", bad), ("devices", leaves), ("machine", good)])
    assert [f.value for f in made.findings] == ["seen", "failed: OSError: no such", "failed: SystemExit: 3", "3.11"]
    assert made.verdict == "Everything needed to train is there." and not made.broken
    bad.essential = True  # type: ignore[attr-defined]
    made = diagnose([("machine", bad)])
    assert made.verdict == "Training will not work: bad (failed: OSError: no such)."


def test_the_verdict_says_what_to_do_once() -> None:
    fix = "pip install 'inlay[cli]'"
    gone = [Finding("packages", name, "not installed", BROKEN, fix) for name in ("pydantic", "pyyaml")]
    made = Diagnosis([Finding("machine", "python", "3.11"), *gone, Finding("trials", "hqq", "not installed", NOTE)])
    wanted = f"Training will not work: pydantic (not installed), pyyaml (not installed). Do this: {fix}"
    assert made.verdict == wanted and str(made).endswith(f"\n\n{wanted}")
    lines = str(made).splitlines()
    assert lines[0] == "machine" and "! pydantic" in str(made) and "- hqq" in str(made) and fix in lines[4]
    data = json.loads(json.dumps(made.to_dict()))
    assert data["sound"] is False and data["findings"][1]["state"] == "broken"


def test_without_torch_it_says_so() -> None:
    """What is looked at may be broken, to the point that nothing of it can be imported."""
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'huggingface_hub'):\n    sys.modules[name] = None\n"
        "from inlay.diagnosis import diagnosis, trials\n"
        "quick = [p for p in diagnosis.PROBES if p[1] is not trials.libraries]\n"
        "print(diagnosis.diagnose(quick))"
    )
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("Training will not work: inlay train (cannot be imported: ")
    assert "devices                failed: ModuleNotFoundError: import of torch halted" in done.stdout


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_secret_0123456789")
    quick = [p for p in PROBES if p[1] is not trials.libraries]
    assert "secret" not in json.dumps(diagnose(quick).to_dict())


# ---------------------------------------------------------------------- the machine


def test_the_machine() -> None:
    assert found(machine.system)["python"].value.startswith(".".join(map(str, sys.version_info[:3])))
    lines = found(machine.memory)
    assert lines["memory"].value.count("iB") == 2 and "iB free" in lines["disk"].value
    devices = found(machine.devices)
    assert importlib.metadata.version("torch").split("+")[0] in devices["torch"].value and len(devices) >= 2


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_OLDEST", (9, 0))
    finding = found(machine.system)["python"]
    assert finding.state == BROKEN and finding.fix == "install Python 9.0 or later"


def test_little_memory_is_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_memory", lambda: (8e9, 1e9))
    finding = found(machine.memory)["memory"]
    assert finding.state == NOTE and finding.value == "953.7 MiB free of 7.5 GiB"


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = found(machine.devices)["gpu"]
    assert finding.state == NOTE and finding.fix == "install torch's CUDA build"


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")

    class About:
        name, major, minor = "H200", 9, 0

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda i: About,
        "mem_get_info": lambda i: (1e9, 141e9),
        "is_bf16_supported": lambda including_emulation: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    lines = found(machine.devices)
    assert lines["cuda:1"].value == "H200, 953.7 MiB free of 131.3 GiB, compute capability 9.0, bfloat16"


def test_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--a--b").mkdir()
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    lines = found(machine.hub)
    assert (
        lines["cache"].value.startswith(f"{tmp_path} (1 models") and lines["network"].value == "off, by HF_HUB_OFFLINE"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    lines = found(machine.hub)
    assert lines["cache"].state == NOTE and lines["network"].value.startswith("may be used")


# ---------------------------------------------------------------------- packages


def test_what_the_source_tree_and_the_installed_package_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    wanted = {w.name: w for w in packages.packages()}
    assert wanted["torch"].essential and wanted["torch"].extras == [] and wanted["torch"].specifier == ">=2.10"
    assert all(wanted[name].essential for name in ("transformers", "accelerate", "datasets", "pydantic", "typer"))
    assert not wanted["bitsandbytes"].essential and wanted["bitsandbytes"].extras == ["quant"]
    assert wanted["transformers"].extras == ["train"] and "pytest" not in wanted and "inlay" not in wanted
    from_source = packages.packages()
    built = [  # as a wheel's metadata has them
        text.replace("; extra == '", '; extra == "').replace("'", '"') if "; extra" in text else text
        for text in packages._of_source(ROOT / "pyproject.toml")
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: built)
    assert packages.packages() == from_source


@pytest.mark.parametrize(
    ("version", "state", "value", "fix"),
    [
        ("2.13.0+cpu", OK, "2.13.0+cpu (>=2.10)", ""),
        ("2.11.0rc1", OK, "2.11.0rc1 (>=2.10)", ""),
        ("2.9.1", BROKEN, "2.9.1, but >=2.10 is needed", "pip install 'torch>=2.10'"),
        (None, BROKEN, "not installed", "pip install 'inlay[cli]'"),
    ],
)
def test_a_package(monkeypatch: pytest.MonkeyPatch, version: str | None, state: str, value: str, fix: str) -> None:
    def of(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", of)
    made = packages._look(packages.Wanted("torch", ">=2.10", [], essential=True))
    assert (made.state, made.value, made.fix) == (state, value, fix)


def test_an_optional_package_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    made = packages._look(packages.Wanted("no-such-package-x", ">=1", ["quant", "demo"]))
    assert (made.state, made.value, made.fix) == (NOTE, "not installed, for quant, demo", "pip install 'inlay[quant]'")
    assert found(packages.installed)["inlay"].value.startswith(inlay.__version__)


def test_which_peft_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    pytest.importorskip("peft")
    assert "beside Inlay" in found(packages.peft)["peft"].value
    monkeypatch.syspath_prepend(inlay.peft.path())
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    made = found(packages.peft)["peft"]
    assert (
        made.value.startswith("import peft means Inlay in this process, in place of the one in") and made.state == NOTE
    )
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert "nor needed" in found(packages.peft)["peft"].value


# ---------------------------------------------------------------------- trials


def test_a_training_step() -> None:
    made = found(trials.training)["training"]
    assert made.state == OK and "on cpu: an adapter trains, is saved, and loads as it was" in made.value
    assert found(trials.command)["inlay train"].value == "can be imported"


def test_a_training_step_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    made = diagnose([("trials", trials.training)])
    assert made.broken[0].value == "on cpu: a training step does not change what the model answers"
    monkeypatch.undo()
    monkeypatch.setattr(inlay.PeftModel, "save_pretrained", lambda self, folder: (_ for _ in ()).throw(OSError("full")))
    made = diagnose([("trials", trials.training)])
    assert made.verdict == "Training will not work: training (failed: OSError: full)."


def test_a_train_command_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inlay.train.training", None)
    made = found(trials.command)["inlay train"]
    assert made.state == BROKEN and made.value.startswith("cannot be imported: ModuleNotFoundError") and made.fix


def test_libraries_that_work_crash_hang_or_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_START", "")
    programs = {
        "json": "pass",
        "csv": "raise RuntimeError('no kernel\\nfor this device')",
        "wave": "import os; os.kill(os.getpid(), 11)",
        "no_such_library": "pass",
    }
    monkeypatch.setattr(trials, "LIBRARIES", programs)
    lines = {name: (finding.state, finding.value) for name, finding in found(trials.libraries).items()}
    assert lines == {
        "json": (OK, "works"),
        "csv": (NOTE, "does not work: for this device"),
        "wave": (NOTE, "does not work: its process ended with -11"),
        "no_such_library": (OK, "not installed"),
    }
    monkeypatch.setattr(trials, "LIBRARIES", {"json": "import time; time.sleep(60)"})
    monkeypatch.setattr(trials, "_SECONDS", 0.1)
    assert found(trials.libraries)["json"].value == "does not work: no answer within 0.1 s"


def test_the_trial_of_each_library() -> None:
    lines = found(trials.libraries)
    there = [name for name in ("bitsandbytes", "torchao", "hqq") if importlib.util.find_spec(name)]
    if not there:
        pytest.skip("none of them is installed")
    assert {name: lines[name].value for name in there} == dict.fromkeys(there, "works")
