"""Stanford Alpaca: `instruction`, `output` and sometimes `input`; seed tasks have their pairs under `instances`."""

from __future__ import annotations

from typing import Any

from inlay.data.chat import Chat
from inlay.data.schema import BadRow, Format, Part, Row, register, valid_text
from inlay.data.templates import alpaca


def _parts(row: Row, chat: Chat) -> list[Part]:
    if "instances" in row.values and "output" not in row.values:
        given, output = _first(row.get("instances"))
    else:
        given, output = row.optional("input"), row.text("output")
    return [Part(alpaca(row.text("instruction"), given)), Part(output, True)]


def _first(instances: Any) -> tuple[str, str]:
    """Input and output of the first instance, the only one that Alpaca uses."""
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise BadRow("instances is not a list of objects with input and output")
    first = instances[0]
    return valid_text(first.get("input") or "", "instances[0].input"), valid_text(
        first.get("output"), "instances[0].output"
    )


ALPACA = register(
    Format("alpaca", (("instruction", "output"), ("instruction", "instances")), _parts, optional=("input",))
)
