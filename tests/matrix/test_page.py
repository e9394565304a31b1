"""The page says what the tables say, and the tables leave nothing out."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.matrix import methods, page, test_cells
from tests.matrix.models import MODELS, TASK_OF

TABLES = {  # task -> transformers' table of the models that have it
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING",
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION",
    "semantic segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ",
}
LEFT_OUT = {
    ("whisper", "CAUSAL_LM"),  # half of one, to draft for a whole one
    ("clip", "image classification"),
}


def expected() -> dict[tuple[str, str], str | None]:
    """What the page has to say."""
    found = {}
    for model, method in methods.cells():
        why = methods.reason(method, model)
        found[str(model), method] = None if why is None else why.text
    return found


def test_the_page_is_up_to_date() -> None:
    """After a change: `pytest -n auto tests/matrix`, with diffusers, goes through every cell and writes the page."""
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.render(expected()), "out of date: run `pytest -n auto tests/matrix`, which writes it"


def test_every_task_that_a_family_has_is_here() -> None:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    here = {(m.family, m.task) for m in MODELS} | LEFT_OUT
    families = {family for family, _ in here}
    there = {
        (family, task)
        for task, table in TABLES.items()
        for family in getattr(auto, f"{table}_MAPPING_NAMES")
        if family in families
    }
    assert there <= here
    assert len(MODELS) == len({str(m) for m in MODELS}) and set(TASK_OF.values()) < {m.task for m in MODELS}


def test_every_reason_is_one_of_a_cell() -> None:
    used = {id(methods.reason(method, model)) for model, method in methods.cells()}
    assert all(id(r) in used for r in methods.REASONS)


def test_the_tables_speak_of_methods_that_there_are() -> None:
    named = {*methods.FIELDS, *methods.INPUTS, *(name for name, _ in methods.VARIANTS.values())}
    assert {*named, *(name for r in methods.REASONS for name in r.methods)} <= {*methods.methods()}


@pytest.fixture
def cell() -> Any:
    return next((m, method) for m, method in methods.cells() if methods.reason(method, m) is None)


def test_a_cell_that_does_not_learn_fails(cell: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(test_cells, "RATES", (0.0,))
    with pytest.raises(pytest.fail.Exception, match="the loss went from"):
        test_cells.test_cell(*cell, tmp_path, lambda *_: None)


def test_a_cell_that_works_against_the_table_fails(cell: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = methods.Reason("it does work", "-", (cell[1],), lambda _: True)
    monkeypatch.setattr(methods, "REASONS", [wrong])
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_cells.test_cell(*cell, tmp_path, lambda *_: None)


def test_the_page_is_written_after_a_full_run_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session: Any = SimpleNamespace(config=SimpleNamespace())
    results = expected()
    monkeypatch.setattr(page, "PAGE", tmp_path / "support.md")
    monkeypatch.setattr(page, "_found", {})
    for when in ("setup", "call"):
        for (model, method), why in list(results.items())[1:]:
            report: Any = SimpleNamespace(when=when, passed=True, user_properties=[("cell", [model, method, why])])
            page.pytest_runtest_logreport(report)
    page.pytest_sessionfinish(session)
    assert not page.PAGE.exists()
    (model, method), why = next(iter(results.items()))
    failed: Any = SimpleNamespace(when="call", passed=False, user_properties=[("cell", [model, method, why])])
    page.pytest_runtest_logreport(failed)
    page.pytest_sessionfinish(session)
    assert not page.PAGE.exists()
    failed.passed = True
    page.pytest_runtest_logreport(failed)
    worker: Any = SimpleNamespace(config=SimpleNamespace(workerinput={}))
    page.pytest_sessionfinish(worker)
    assert not page.PAGE.exists()
    page.pytest_sessionfinish(session)
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results)
    before = page.PAGE.stat().st_mtime_ns
    page.pytest_sessionfinish(session)
    assert page.PAGE.stat().st_mtime_ns == before


def test_the_page_of_some_results() -> None:
    first, second = methods.methods()[:2]
    results = dict.fromkeys(expected())
    text = page.render(results).replace(page.QUANTISED, "").partition("## ")[2]
    assert "1" not in text.replace(f"{len(methods.methods())} methods", "")
    results["vit-image-classification", second] = "because"
    text = page.render(results)
    assert f"`{first}`" in text and f"`{second}`" not in text
    assert f"| model | all above | {second.removesuffix('Config')} |" in text
    assert "| vit, image classification | ✓ | 1 |" in text and "\n1. because\n" in text
