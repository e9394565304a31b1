"""The prompt, the reading of answers, and seed files: Alpaca's golden cases, each verified against its own script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.errors import DataError, MissingFileError
from inlay.selfinstruct.profile import PROFILES
from inlay.selfinstruct.prompt import Prompts, Task, encode, own_seeds, parse, read_seeds
from inlay.selfinstruct.similarity import Pool

ALPACA = Path("/work/shared/data/stanford_alpaca")
SHOTS = [Task("Name a\n  bird: ", "", "A wren."), Task("Add them", "1, 2", "3"), Task("Say hello", "", "Hello")]


def test_the_prompt_is_alpacas_layout() -> None:
    assert encode("HEAD", SHOTS) == (
        "HEAD\n"
        "###\n1. Instruction: Name a bird\n1. Input:\n<noinput>\n1. Output:\nA wren.\n"
        "###\n2. Instruction: Add them\n2. Input:\n1, 2\n2. Output:\n3\n"
        "###\n3. Instruction: Say hello\n3. Input:\n<noinput>\n3. Output:\nHello\n"
        "###\n4. Instruction:"
    )


def test_prompts_depend_on_seed_and_number_alone() -> None:
    seeds = own_seeds("seeds.jsonl")
    one, again, other = Prompts("h", seeds, 3, 0), Prompts("h", seeds, 3, 0), Prompts("h", seeds, 3, 1)
    assert [one(k) for k in range(20)] == [again(k) for k in reversed(range(20))][::-1]
    assert one(0) != one(1) and one(0) != other(0)
    assert all(one(k).count("###") == 4 for k in range(20))


def piece(number: int, instruction: str = "Name four birds", given: str = "<noinput>", output: str = "Wren") -> str:
    return f"{number}. Instruction: {instruction}\n{number}. Input:\n{given}\n{number}. Output:\n{output}\n"


def answer(*pieces: str) -> str:
    """What a model says after the prompt: its first piece lacks the label that the prompt ends in."""
    return "###\n".join(pieces).removeprefix("4. Instruction:")


def test_tasks_are_read_in_order() -> None:
    text = answer(piece(4, "First", "<NoInput>"), piece(5, "Second", "  7 \n"), piece(6, "Third", output="a\n\nb "))
    assert parse(text, 3) == ([Task("First", "", "Wren"), Task("Second", "7", "Wren"), Task("Third", "", "a\n\nb")], 0)


@pytest.mark.parametrize(
    ("text", "instructions", "malformed"),
    [
        (None, [], 0),
        ("", [], 1),
        ("nonsense", [], 1),
        (answer(piece(4, "A"), piece(6, "B"), piece(6, "C")), ["A", "C"], 1),  # a number that is not its place's
        (answer(piece(4, "A", output="x ### y"), piece(5, "B")), ["A"], 2),  # shifts the place of all that follow
        (answer(piece(4, "A"), "5. Instruction: B\n5. Output:\nC\n"), ["A"], 1),  # a label is missing
        (answer(piece(4, "A") + "4. Output: more"), [], 1),  # a label too many
        (answer(piece(4, "A"), piece(5, "B").replace("5. Input", "5 Input")), ["A"], 1),
    ],
)
def test_what_is_no_task_is_counted(text: str | None, instructions: list[str], malformed: int) -> None:
    tasks, bad = parse(text, 3)
    assert ([t.instruction for t in tasks], bad) == (instructions, malformed)


def test_the_last_piece_of_an_answer_cut_by_its_budget_is_left_out() -> None:
    text = answer(piece(4, "A"), piece(5, "B"))
    assert [t.instruction for t in parse(text, 3, cut=True)[0]] == ["A"]
    assert [t.instruction for t in parse(text, 3, cut=False)[0]] == ["A", "B"]
    assert parse(answer(piece(4, "A")), 3, cut=True) == ([], 1)


def test_numbers_follow_the_shots() -> None:
    text = answer("2. Instruction: A\n2. Input:\n-\n2. Output:\nB").removeprefix("2. Instruction:")
    assert parse(text, 1) == ([Task("A", "-", "B")], 0)
    assert parse(text, 3) == ([], 1)


@pytest.mark.parametrize(("name", "profile"), [("seeds.jsonl", "alpaca"), ("seeds_zh.jsonl", "zh")])
def test_our_seeds_are_sound_varied_and_not_similar(name: str, profile: str) -> None:
    seeds = own_seeds(name)
    assert len(seeds) >= 16 and any(not s.input for s in seeds) and any(s.input for s in seeds)
    assert [s for s in seeds if any(f.drops(s) for f in PROFILES[profile].filters)] == []
    pool = Pool(PROFILES[profile].tokens)
    for seed in seeds:
        assert len(pool) == 0 or pool.scores(seed.instruction).max() <= 0.5
        pool.add(seed.instruction)


def row(**changes: object) -> str:
    return json.dumps({"instruction": "Do it", "instances": [{"input": "", "output": "Done"}], **changes})


def test_a_seed_file_is_read_in_alpacas_layout(tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    two = [{"input": "x", "output": "y"}, {"input": "no", "output": "no"}]
    file.write_text("\ufeff" + row(id=1, is_classification=True) + "\n\n" + row(instances=two) + "\n", encoding="utf-8")
    assert read_seeds(file) == [Task("Do it", "", "Done"), Task("Do it", "x", "y")]


def test_bad_seed_rows_are_named_by_line_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    lines = ["{", "[]", row(instances=[]), row(instances=[{"input": 1}]), row(), row(instruction=" ")]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_seeds(file)
    message = str(caught.value)
    for part in ("line 1: Expecting", "line 2: not an object", "line 3: 'instances'", "line 4: instruction, input and"):
        assert part in message
    assert "line 5" not in message and "line 6: 'instruction' is empty" in message
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_seeds(file)
    with pytest.raises(MissingFileError, match="No seed tasks at"):
        read_seeds(tmp_path / "none")


@pytest.mark.skipif(not ALPACA.exists(), reason="needs Alpaca's seeds in /work/shared/data")
def test_alpacas_own_seeds_and_prompt() -> None:
    seeds = read_seeds(ALPACA / "seed_tasks.jsonl")
    assert len(seeds) == 175 and sum(not s.input for s in seeds) == 50
    head = (ALPACA / "prompt.txt").read_text(encoding="utf-8")
    assert encode(head, seeds[:3]).startswith(head + "\n###\n1. Instruction: ")
