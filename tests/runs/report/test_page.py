"""The page of a run: there whatever the run's files hold, self-contained, everything of the user's escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from inlay.data import Tokens
from inlay.errors import CorruptFileError
from inlay.io import plain
from inlay.recipe.recipe import Recipe
from inlay.runs.report import parts
from inlay.runs.report.page import page, write_report
from inlay.runs.run import Run
from inlay.train.training import train
from tests.comparison.test_result import NASTY, checked
from tests.train import tiny


def quiet(line: str) -> None: ...


LINES = [
    {"step": 0, "eval_loss": 3.5, "seconds": 1.0},
    {"step": 5, "loss": 3.0, "learning_rate": 1e-4, "grad_norm": 1.0, "num_input_tokens_seen": 1000, "seconds": 60.0},
    {"step": 5, "eval_loss": 2.25, "seconds": 61.0, "session": 2, "tokens_per_second": 33.0, "memory_bytes": 2**30},
]
PART = {
    "source": "rows.jsonl",
    "sha256": "ab" * 32,
    "rows": 20,
    "format": "alpaca",
    "read": 25,
    "dropped": {"output is missing": 3},
    "truncated": 2,
    "lengths": {"shortest": 3, "mean": 7.4, "median": 7, "p95": 11, "longest": 12},
    "tokens": 148,
    "trained_tokens": 37,
}
ENVIRONMENT = {
    "inlay": "1.2.3",
    "torch": "2.13.0",
    "datasets": None,
    "device": "cpu",
    "processes": 1,
    "seed": 0,
    "command": "inlay train recipe.yaml",
    "began": 1_790_000_000.0,
    "data": {"train": PART, "eval": {**PART, "rows": 5, "tokens": 40, "trained_tokens": 10}},
    "base": {"name": "base", "commit": "c0ffee"},
    "steps": 10,
    "parameters": {"trainable": 50, "total": 1000},
}


def made(
    folder: Path,
    lines: list[Any] = LINES,
    environment: dict[str, Any] = ENVIRONMENT,
    finished: bool = True,
    name: str = "run",
    **changes: Any,
) -> Run:
    """The folder of a run that never was."""
    run = Run(folder / name)
    run.folder.mkdir(parents=True)
    values = {"model.name": "base", "data.train": "rows.jsonl", "out": str(run.folder)}
    recipe = Recipe.make(values | changes)
    plain.write_yaml(run.folder / "recipe.yaml", recipe.model_dump(mode="json", exclude_unset=True))
    plain.write_yaml(run.folder / "resolved.yaml", recipe.resolved())
    plain.write_json(run.folder / "environment.json", environment)
    plain.write_lines(run.folder / "metrics.jsonl", lines)
    if finished:
        run.adapter.mkdir()
        (run.adapter / "adapter_model.safetensors").write_bytes(b"x" * 2048)
        plain.write_json(run.adapter / "inlay_run.json", {"format": "alpaca", "step": 5, "steps": 5})
    return run


def text(html: str) -> str:
    """What is read of it."""
    body = re.sub(r"<(style|title)>.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_page_says_everything(tmp_path: Path) -> None:
    run = made(tmp_path)
    samples = [("before", "It is a blue house"), ("after", "It is a red house")]
    plain.write_lines(run.folder / "samples.jsonl", [{"step": 0, "prompt": "Describe.", k: v} for k, v in samples])
    path = write_report(run)
    html = path.read_text(encoding="utf-8")
    said = text(html)
    for wanted in (
        "Learned: the held-out loss fell from 3.500 before training to 2.250 at step 5.",
        "Finished at step 5 of 10.",
        "before 3.500 33.12",
        "5 2.250 9.49 -1.250",
        "Describe.",
        "Steps 5 of 10",
        "Tokens seen 1,000 (padding included)",
        "Wall time 1 min 1 s, in 2 sessions",
        "Tokens per second 33 (median)",
        "Peak memory 1.0 GiB",
        "Trained parameters 50 of 1,000 (5 %)",
        "Weights on disk 2.0 KiB",
        "Device cpu",
        "Rows 20 of 25 read 5 of 25 read",
        "Dropped of the source 3: output is missing",
        "Truncated 2",
        "3 to 12; mean 7, median 7, 95 % up to 11",
        "Trained tokens 37 of 148 (25.0 %) 10 of 40 (25.0 %)",
        "ab" * 32,
        "max_length: 2048",
        "torch 2.13.0",
        "commit of the base c0ffee",
        "command inlay train recipe.yaml",
        f"inlay compare {run.folder} --prompts",
        f"inlay chat {run.folder} --vs base",
        f"inlay export {run.folder} --to merged",
        "2026-09-21",
    ):
        assert wanted in said, wanted
    assert checked(html).marked == ["blue", "red"]
    headings = ["Curves", "Held-out loss", "Before and after", "Cost", "Data", "Recipe and versions", "Going on"]
    assert re.findall(r"<h2>([^<]*)</h2>", html) == headings
    assert page(run) == html  # the same folder, the same page


def test_the_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    html = page(made(tmp_path))
    tags = checked(html).tags
    assert {t for t, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    links = {value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href")}
    assert all(str(link).startswith("#") for link in links)
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert "http" not in html.replace("http-equiv", "")
    assert any("default-src 'none'" in (attrs.get("content") or "") for t, attrs in tags if t == "meta")
    assert (
        sum(t == "svg" and attrs["aria-label"] != "" for t, attrs in tags) == 5
    )  # of the loss a wide and a narrow one


def test_everything_of_the_user_is_escaped(tmp_path: Path) -> None:
    part = {**PART, "source": NASTY, "sha256": NASTY, "format": NASTY, "dropped": {NASTY: 1}}
    environment = {**ENVIRONMENT, "data": {"train": part, "eval": None}, "command": NASTY, "device": NASTY}
    environment["base"] = {"commit": NASTY}
    lines = [*LINES, {"step": 6, "stopped": NASTY}]
    changes = {"model.name": NASTY, "data.train": NASTY, "watch.prompts": [NASTY]}
    run = made(tmp_path, lines, environment, finished=False, name="<script>alert(1)", **changes)
    sample = {"step": 0, "prompt": NASTY, "before": NASTY, "after": "<b>"}
    plain.write_lines(run.folder / "samples.jsonl", [sample])
    html = page(run)
    assert "<script" not in html and html.count("&lt;script") > 10
    checked(html)


ODD = {
    "no metrics": ([], "There is no verdict: no loss was logged."),
    "only what is not finite": ([{"step": 1, "loss": None, "grad_norm": None}], "no loss was logged"),
    "one point": ([{"step": 3, "loss": 2.0, "learning_rate": 0.1}], "one loss was logged, 2.000 at step 3"),
    "one evaluation": ([{"step": 3, "eval_loss": 2.0}], "There is no verdict"),
    "some not finite": (
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 2.0, "grad_norm": None}],
        "fell from 3.000 to 2.000 by step 3",
    ),
    "no numbers at all": ([7, None, {"a": 1}, {"step": 1, "loss": 1.0}], "1.000 at step 1"),
    "all the same": ([{"step": s, "loss": 0.0, "eval_loss": 0.0} for s in (1, 2, 3)], "Not learning"),
    "huge": ([{"step": s, "loss": 1e30 * s, "eval_loss": 1e30 * s} for s in (1, 2)], "Not learning"),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("finished", [True, False])
def test_odd_metrics_still_give_a_page(tmp_path: Path, case: str, finished: bool) -> None:
    lines, sentence = ODD[case]
    html = page(made(tmp_path, lines, finished=finished))
    assert sentence in text(html)
    checked(html)


def test_a_run_that_was_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    run = made(tmp_path, finished=False)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run.folder / name).open("a") as file:
            file.write('{"step": 9, "prompt": "Wh')
    said = text(page(run))
    assert "Not finished: it is at step 5 of 10, and was killed there or still runs." in said
    assert f"inlay train {run.folder / 'recipe.yaml'}" in said and "inlay export" not in said


def test_answers_before_alone_are_shown_unmarked(tmp_path: Path) -> None:
    run = made(tmp_path, finished=False)
    plain.write_lines(run.folder / "samples.jsonl", [{"step": 0, "prompt": "P", "before": "said before"}])
    html = page(run)
    assert "said before" in html and checked(html).marked == [] and ">after<" not in html


def test_a_record_of_an_earlier_version_gives_a_page(tmp_path: Path) -> None:
    old = {k: v for k, v in ENVIRONMENT.items() if k not in ("steps", "parameters", "began")}
    old["data"] = {"train": {k: PART[k] for k in ("source", "sha256", "rows")}, "eval": None}
    said = text(page(made(tmp_path, environment=old)))
    assert "Rows 20 " in said and "Trained parameters" not in said and "Finished at step 5." in said


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = made(tmp_path)
    (run.folder / "environment.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"environment\.json' is not JSON"):
        write_report(run)
    assert not (run.folder / "report.html").exists()


def test_a_path_is_quoted_in_commands(tmp_path: Path) -> None:
    run = made(tmp_path, name="my run; rm")
    assert f"inlay chat '{run.folder}' --vs base" in text(page(run)).replace("&#x27;", "'")


def test_of_many_evaluations_some_are_shown_with_the_best(tmp_path: Path) -> None:
    points = [(s, 5.0 if s != 370 else 1.0) for s in range(0, 1001, 10)]
    shown = parts.chosen(points, (370, 1.0))
    assert shown[0] == points[0] and shown[-1] == points[-1] and (370, 1.0) in shown
    assert 12 <= len(shown) <= 15 and shown == sorted(shown)
    run = made(tmp_path, [{"step": s, "eval_loss": v} for s, v in points])
    assert "of 101 evaluations; metrics.jsonl has all of them." in text(page(run))
    assert parts.chosen(points[:14], None) == points[:14]


def test_several_devices(tmp_path: Path) -> None:
    assert parts.device({"device": "NVIDIA H200", "processes": 4}) == "4 x NVIDIA H200"
    assert parts.device({}) is None


def test_a_real_run_records_what_the_page_needs(tmp_path: Path) -> None:
    rows = tiny.rows(tmp_path / "rows.jsonl")
    with rows.open("a") as file:
        file.write(json.dumps({"instruction": "Nothing", "input": "", "output": None}) + "\n")
    changes = {"data.eval": 0.2, "report.html": True, "watch.prompts": ["Count to 3."], "watch.max_new_tokens": 4}
    said: list[str] = []
    run = train(tiny.recipe(tmp_path, **changes), say=said.append)
    assert said[-2:] == [f"Finished: '{run.adapter}'.", f"Report: '{run.folder / 'report.html'}'."]
    environment = run.environment
    trained, held = environment["data"]["train"], environment["data"]["eval"]
    assert (trained["rows"], held["rows"], trained["read"], trained["format"]) == (24, 6, 31, "alpaca")
    assert sum(trained["dropped"].values()) == 1 and 0 < trained["trained_tokens"] < trained["tokens"]
    assert environment["steps"] == run.result["steps"] == 12
    view, _ = run.load()
    count = sum(t.numel() for t in tiny.weights(run.adapter).values())
    assert environment["parameters"]["trainable"] == count
    assert environment["parameters"]["total"] == sum(p.numel() for p in view.parameters())
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "the held-out loss fell from" in html and "Count to 3." in html and f"{count:,} of " in html
    first = run.metrics()[0]
    assert first["step"] == 0 and first["eval_loss"] > run.result["eval_loss"]


def test_the_first_evaluation_is_the_bases(tmp_path: Path) -> None:
    """Step 0 of the held-out losses, computed anew from the base alone."""
    run = train(tiny.recipe(tmp_path, **{"data.eval": 0.2, "train.max_steps": 1, "train.batch": 6}), say=quiet)
    base, tokenizer = run.load_base(), run.load_tokenizer()
    from inlay.comparison.answers import losses
    from inlay.recipe.rows import load_rows

    _, held = load_rows(run.recipe, tokenizer)
    rows = [Tokens(ids, list(map(bool, on)), False, None) for ids, on in (held.tokens(i) for i in range(len(held)))]
    found = losses(base, rows, tokenizer)
    mean = sum(loss.total for loss in found) / sum(loss.tokens for loss in found)
    assert run.metrics()[0]["eval_loss"] == pytest.approx(mean, rel=1e-5)
