"""Adapters used through accelerate: what a script reports under Inlay is what it reports under peft."""

from __future__ import annotations

from typing import Any

import pytest

from .run import assert_same, run

Pair = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """What `accelerate_models.py` reports under Inlay, and under peft."""
    found = (run("accelerate_models.py", str(tmp_path_factory.mktemp(p)), peft=p) for p in ("inlay", "peft"))
    return next(found), next(found)


@pytest.mark.parametrize("part", ["recognised", "adapter_only", "loop"])
def test_accelerate(reports: Pair, part: str) -> None:
    ours, theirs = (report[part] for report in reports)
    assert_same(ours, theirs)


def test_accelerate_itself(reports: Pair) -> None:
    """What does not depend on peft being right."""
    ours = reports[0]
    assert ours["recognised"] == {
        **dict.fromkeys(("view", "parallel", "extracted"), True),
        **dict.fromkeys(("base", "compiled", "in place"), False),
    }
    state = ours["adapter_only"]
    assert state["logits"] == state["set"] == state["full set"]
    loop = ours["loop"]
    assert loop["second"] == loop["resumed"] and loop["kind"] and loop["saved"]
    assert ours["hooks"] == {"same": True, "keys": 8}
