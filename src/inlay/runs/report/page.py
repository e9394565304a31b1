"""The page: `report.html`, which needs nothing but itself."""

from __future__ import annotations

import datetime
from html import escape
from pathlib import Path
from typing import Any

from inlay.comparison import Answer, Comparison, Row
from inlay.comparison.page import document, fragment
from inlay.io.disk import replace_file
from inlay.readable import place
from inlay.runs.history import History
from inlay.runs.report import parts
from inlay.runs.report.charts import charts
from inlay.runs.report.commands import commands
from inlay.runs.report.style import STYLE
from inlay.runs.report.verdict import Verdict, verdict
from inlay.runs.run import REPORT, Run

_TONES = {"learned": "good", "overfits": "mid", "no evaluation": "mid", "no numbers": "mid"}


def write_report(run: Run) -> Path:
    """Writes `report.html` of a run, finished or not, from what is in its folder. Gives its path.

    Raises MissingExtraError if matplotlib cannot be imported, CorruptFileError if a file of the run is damaged.
    """
    path = run.folder / REPORT
    replace_file(path, page(run).encode())
    return path


def page(run: Run) -> str:
    """The page as text. The same folder gives the same text."""
    history, environment = History.of(run.metrics()), run.environment
    found = verdict(history, run.finished, environment.get("steps"))
    name = run.folder.absolute().name
    body = (
        f"<header>\n<h1>{escape(name)}</h1>\n{_facts(run, environment)}\n</header>",
        _verdict(found),
        _curves(history),
        parts.section("Held-out loss", parts.held_out(history)),
        parts.section("Before and after", _samples(run)),
        parts.section("Cost", parts.cost(run, history, environment)),
        parts.section("Data", parts.data(environment)),
        parts.section("Recipe and versions", _pair(parts.resolved(run), parts.versions(environment))),
        parts.section("Going on", f'<div class="card"><pre>{escape(chr(10).join(commands(run)))}</pre></div>'),
    )
    return document(f"{name}: {found.kind}", "\n".join(part for part in body if part), STYLE)


def _facts(run: Run, environment: dict[str, Any]) -> str:
    recipe = run.recipe
    facts = [recipe.adapter.method, f"on {place(recipe.model.name)}", f"with {place(recipe.data.train)}"]
    if began := environment.get("began"):
        at = datetime.datetime.fromtimestamp(began, datetime.timezone.utc)
        facts.append(f"{at:%Y-%m-%d %H:%M} UTC")
    return '<p class="facts">' + "".join(f"<span>{escape(fact)}</span>" for fact in facts) + "</p>"


def _verdict(found: Verdict) -> str:
    others = "".join(f"<p>{escape(line)}</p>" for line in (found.state, found.advice) if line)
    tone = _TONES.get(found.kind, "bad")
    return f'<div class="verdict {tone}"><p class="main">{escape(found.sentence)}</p>{others}</div>'


def _curves(history: History) -> str:
    figures = [f"<figure><figcaption>{c.title}</figcaption>{c.svg}</figure>" for c in charts(history)]
    return parts.section("Curves", f'<div class="curves">{"".join(figures)}</div>' if figures else "")


def _samples(run: Run) -> str:
    """Prompts, answered before and after; only before if the run did not come to its end."""
    lines = [line for line in run.samples() if isinstance(line, dict) and "prompt" in line]
    before, after = ({s["prompt"]: s[when] for s in lines if when in s} for when in ("before", "after"))
    prompts = [prompt for prompt in before if prompt in after] if after else list(before)
    columns = ("before", "after") if after else ("before",)
    rows = (Row(p, tuple(Answer(answers[p]) for answers in (before, after) if answers)) for p in prompts)
    settings = {"max_new_tokens": run.recipe.watch.max_new_tokens}
    return fragment(Comparison(columns, tuple(rows), settings)) if prompts else ""


def _pair(left: str, right: str) -> str:
    return f'<div class="pair">{left}{right}</div>' if right else left
