"""`Finding`: one line of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, BROKEN = "ok", "note", "broken"


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        group: what it belongs to: machine, devices, packages, ...
        name: what it is.
        value: what was found.
        state: "ok"; "note" where something optional is not there, or worth knowing; "broken" if training needs it.
        fix: what to do.
    """

    group: str
    name: str
    value: str
    state: str = OK
    fix: str = ""
