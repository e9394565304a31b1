"""`inlay doctor`."""

from __future__ import annotations

import json

import pytest

from inlay.diagnosis import Finding, diagnosis, trials
from tests.cli.test_train import run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the trials of other libraries, which have a test of their own."""
    monkeypatch.setattr(diagnosis, "PROBES", [p for p in diagnosis.PROBES if p[1] is not trials.libraries])


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor")[0] == 0
    out = capsys.readouterr().out
    assert out.startswith("machine\n") and out.endswith("\nEverything needed to train is there.\n")
    groups = [line for line in out.splitlines()[:-1] if line and line[0] not in " !-"]
    assert groups == ["machine", "devices", "packages", "hub", "trials"]
    assert run("doctor", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True


def test_something_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Finding("packages", "torch", "not installed", "broken", "pip install 'inlay[cli]'")
    monkeypatch.setattr(diagnosis, "PROBES", [("packages", lambda: [gone])])
    assert run("doctor")[0] == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Training will not work: torch (not installed). Do this: pip install 'inlay[cli]'"
