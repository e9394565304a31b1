"""`diagnose`: everything is looked at, and what cannot be looked at is a line too."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from inlay.diagnosis import machine, packages, trials
from inlay.diagnosis.finding import BROKEN, NOTE, Finding

Probe = Callable[[], Iterable[Finding]]

PROBES: list[tuple[str, Probe]] = [
    ("machine", machine.system),
    ("machine", machine.memory),
    ("devices", machine.devices),
    ("packages", packages.installed),
    ("packages", packages.peft),
    ("hub", machine.hub),
    ("trials", trials.libraries),
    ("trials", trials.command),
    ("trials", trials.training),
]
"""What is looked at, in the order of the report: its group, and a function that finds."""

_MARKS = {BROKEN: "!", NOTE: "-"}


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        findings: every line.
    """

    findings: list[Finding]

    @property
    def broken(self) -> list[Finding]:
        """What keeps training from working."""
        return [f for f in self.findings if f.state == BROKEN]

    @property
    def verdict(self) -> str:
        """One line: whether one can train, or what is missing and what to do."""
        if not self.broken:
            return "Everything needed to train is there."
        fixes = list(dict.fromkeys(f.fix for f in self.broken if f.fix))
        what = ", ".join(f"{f.name} ({f.value})" for f in self.broken)
        return f"Training will not work: {what}.{' Do this: ' if fixes else ''}{'; '.join(fixes)}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found = [asdict(f) for f in self.findings]
        return {"verdict": self.verdict, "sound": not self.broken, "findings": found}

    def __str__(self) -> str:
        lines: list[str] = []
        group = None
        for f in self.findings:
            if f.group != group:
                lines += ["", f.group]
                group = f.group
            fix = f"  ({f.fix})" if f.fix else ""
            lines.append(f"{_MARKS.get(f.state, ' ')} {f.name:<22} {f.value}{fix}")
        return "\n".join([*lines, "", self.verdict]).strip("\n")


def diagnose(probes: Sequence[tuple[str, Probe]] | None = None) -> Diagnosis:
    """Looks at machine, devices and packages, and tries out a training step. Nothing is downloaded, no secret shown.

    A probe that fails is a line that says how; it does not end the others.
    """
    findings: list[Finding] = []
    for group, probe in PROBES if probes is None else probes:
        try:
            with _quiet():
                findings += probe()
        except (Exception, SystemExit) as error:  # whatever it is: it is what was found
            name = getattr(probe, "__name__", "probe")
            state = BROKEN if getattr(probe, "essential", False) else NOTE
            findings.append(Finding(group, name, f"failed: {type(error).__name__}: {error}".splitlines()[0], state))
    return Diagnosis(findings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what packages say when they are imported to look at them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
