"""What is seen of a run while it trains."""

from __future__ import annotations

import re
from pathlib import Path

from inlay.train.training import train
from tests.train import tiny

LINE = r"step {}/4  loss \d\S*  learning_rate \d\S*  [\d,]+ tokens/s  \d+\.\d [MG]iB  \d\S* s left"


def test_a_line_for_every_log(tmp_path: Path) -> None:
    said: list[str] = []
    train(tiny.recipe(tmp_path, **{"train.max_steps": 4, "train.log_every": 2}), say=said.append)
    assert said[0] == "effective batch 4 = 2 rows x 2 passes, 4 steps"
    steps = [line for line in said if line.startswith("step ")]
    assert [bool(re.fullmatch(LINE.format(n), line)) for n, line in zip((2, 4), steps, strict=True)] == [True, True]
