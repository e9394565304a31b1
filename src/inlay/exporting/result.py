"""`Export`: what was written, and what verifying it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inlay.exporting.probes import Difference


@dataclass
class Export:
    """What was written.

    Attributes:
        to: the form.
        folder: where it is.
        file: the file in it to be read, if it is one file.
        difference: between what was written and its source, in a whole model that was verified.
        rejections: why vLLM would not read an adapter's folder; empty if it would.
        notes: what else is worth knowing.
    """

    to: str
    folder: Path
    file: str | None = None
    difference: Difference | None = None
    rejections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For files."""
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        lines = [f"{self.to}: {self.folder / (self.file or '')}"]
        lines += [] if self.difference is None else [f"  verified: {self.difference}"]
        lines += [f"  vLLM would reject it: {reason}" for reason in self.rejections]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
