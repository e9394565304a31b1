"""The prompt that shows a model a few tasks and asks for more, and the reading of its answer.

    HEAD                                       a text of ours, or a file of the user's
    ###
    1. Instruction: ...                        `shots` seeds, numbered from 1
    1. Input:
    ...                                        `<noinput>` where the seed has none
    1. Output:
    ...
    ###
    4. Instruction:                            the model continues here

The layout and its reading are Stanford Alpaca's (`generate_instruction.py`); the heads and seeds shipped are our own.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from inlay.errors import DataError, MissingFileError

NO_INPUT = "<noinput>"


class Task(NamedTuple):
    """An instruction, the input it is applied to ("" for none), and the answer."""

    instruction: str
    input: str
    output: str


def encode(head: str, shots: Sequence[Task]) -> str:
    """The prompt: `head`, the `shots`, and the beginning of the task that follows them."""
    lines = [head + "\n"]
    for number, (instruction, given, output) in enumerate(shots, 1):
        instruction = re.sub(r"\s+", " ", instruction).strip().rstrip(":")
        lines.append(f"###\n{number}. Instruction: {instruction}\n")
        lines.append(f"{number}. Input:\n{given or NO_INPUT}\n{number}. Output:\n{output}\n")
    return "".join(lines) + f"###\n{len(shots) + 1}. Instruction:"


@dataclass(frozen=True)
class Prompts:
    """Prompt k, for every k: `shots` of `seeds`, drawn by `seed` and k alone."""

    head: str
    seeds: Sequence[Task]
    shots: int
    seed: int

    def __call__(self, k: int) -> str:
        return encode(self.head, random.Random(f"{self.seed}/{k}").sample(self.seeds, self.shots))


def parse(text: str | None, shots: int, cut: bool = False) -> tuple[list[Task], int]:
    """The tasks of an answer to a prompt of `shots` tasks, in order, and the number of pieces that are none.

    A piece between two `###` is a task when its three labels carry the number of its place. With `cut`, the answer
    ended because its budget was used up, and its last piece is left out.
    """
    if text is None:
        return [], 0
    pieces = f"{shots + 1}. Instruction:{text}".split("###")
    tasks, malformed = [], 0
    for number, piece in enumerate(pieces[:-1] if cut else pieces, shots + 1):
        parts = re.split(rf"{number}\.\s+(Instruction|Input|Output):", piece)
        if len(parts) != 7:
            malformed += 1
            continue
        instruction, given, output = (part.strip() for part in parts[2::2])
        tasks.append(Task(instruction, "" if given.lower() == NO_INPUT else given, output))
    return tasks, malformed + cut


def read_seeds(path: str | os.PathLike[str]) -> list[Task]:
    """The tasks of a `seed_tasks.jsonl` in Alpaca's layout: one JSON object a line, whose `instruction` and first of
    `instances` (`input`, `output`) are used.

    Raises MissingFileError if the file is not there, DataError with line and reason where lines are no task.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"No seed tasks at {path}. Give a file in the layout of seed_tasks.jsonl.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}).") from None
    seeds: list[Task] = []
    bad: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            seeds.append(_seed(line))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{path} has lines that are not seed tasks: {'; '.join(bad[:5])}{more}. "
            'A line is {"instruction": "...", "instances": [{"input": "...", "output": "..."}]}.'
        )
    return seeds


def _seed(line: str) -> Task:
    """The task of a line; ValueError says why it is none."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    if not isinstance(first, dict):
        raise ValueError("'instances' is not a list that begins with an object")
    task = Task(row.get("instruction", ""), first.get("input", ""), first.get("output", ""))
    if not all(isinstance(field, str) for field in task):
        raise ValueError("instruction, input and output must be texts")
    if not task.instruction.strip():
        raise ValueError("'instruction' is empty")
    return task


def own_seeds(name: str) -> list[Task]:
    """The seeds shipped with Inlay: `"seeds.jsonl"` (English) or `"seeds_zh.jsonl"` (Chinese)."""
    with resources.as_file(resources.files("inlay.selfinstruct") / name) as path:
        return read_seeds(path)
