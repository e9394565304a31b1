"""The report's tables: held-out losses, cost, data, recipe, commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from inlay.readable import count, duration, loss, share, size
from inlay.runs.history import History, Point
from inlay.runs.run import RESOLVED, Run

_MOST = 14  # evaluations that are shown


def section(title: str, *content: str) -> str:
    """A heading and what is below it; nothing if that is nothing."""
    inside = "\n".join(c for c in content if c)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def held_out(history: History) -> str:
    """Step, loss and perplexity of evaluations."""
    points, best = history.evaluations, history.best
    if not points:
        return ""
    shown = chosen(points, best)
    first = points[0][1]
    rows = []
    for step, value in shown:
        mark = ' class="best"' if best is not None and step == best[0] else ""
        change = "" if step == points[0][0] else f"{value - first:+.3f}"
        name = "before" if step == 0 else str(step)
        cells = (name, loss(value), _perplexity(value), change)
        rows.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("step", "loss", "perplexity", "change"))
    table = f'<table class="numbers"><thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table>'
    note = f'<p class="note">{len(shown)} of {len(points)} evaluations; metrics.jsonl has all of them.</p>'
    return f'<div class="card">{table}</div>' + (note if len(shown) < len(points) else "")


def chosen(points: Sequence[Point], best: Point | None) -> list[Point]:
    """Not too many, evenly, the first, the last and the best among them."""
    if len(points) <= _MOST:
        return list(points)
    every = (len(points) - 1) / (_MOST - 2)
    at = {round(i * every) for i in range(_MOST - 1)}
    return [p for i, p in enumerate(points) if i in at or p == best]


def _perplexity(value: float) -> str:
    return f"{math.exp(value):,.2f}" if value < 20 else f"e^{value:.1f}"


def cost(run: Run, history: History, environment: Mapping[str, Any]) -> str:
    """Steps, tokens, time, memory, and what is trained."""
    rows: list[tuple[str, str | None]] = [("Steps", _of(history.step, environment.get("steps")))]
    sessions = f", in {history.sessions} sessions" if history.sessions > 1 else ""
    rows += [
        ("Tokens seen", None if history.tokens is None else count(history.tokens) + " (padding included)"),
        ("Wall time", None if history.seconds is None else duration(history.seconds) + sessions),
        ("Tokens per second", None if not history.tokens_per_second else f"{history.tokens_per_second:,.0f} (median)"),
        ("Peak memory", None if history.memory is None else size(history.memory)),
    ]
    parameters = environment.get("parameters") or {}
    if parameters:
        trained, total = parameters["trainable"], parameters["total"]
        rows.append(("Trained parameters", f"{count(trained)} of {count(total)} ({share(trained, total)})"))
    on_disk = sum(p.stat().st_size for p in run.adapter.glob("*.safetensors"))
    rows += [("Weights on disk", size(on_disk) if on_disk else None), ("Device", device(environment))]
    return table((name, value) for name, value in rows if value)


def device(environment: Mapping[str, Any]) -> str | None:
    """`2 x NVIDIA H200`"""
    name, several = environment.get("device"), environment.get("processes", 1)
    return f"{several} x {name}" if name and several > 1 else name


def data(environment: Mapping[str, Any]) -> str:
    """What was trained and evaluated on."""
    parts = {k: v for k, v in (environment.get("data") or {}).items() if v}
    if not parts:
        return ""
    names = {"train": "trained on", "eval": "held out"}
    columns = [_described(part) for part in parts.values()]
    keys = dict.fromkeys(key for column in columns for key in column)
    head = "<th></th>" + "".join(f"<th>{names[name]}</th>" for name in parts)
    body = "".join(f"<tr><th>{key}</th>{_cells([column.get(key, '') for column in columns])}</tr>" for key in keys)
    return f'<div class="card"><table class="parts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(values: Sequence[str]) -> str:
    """One cell if all are the same."""
    if len(set(values)) == 1:
        return f'<td colspan="{len(values)}">{values[0]}</td>'
    return "".join(f"<td>{value}</td>" for value in values)


def _described(part: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the table: name -> HTML."""
    found = {"Source": escape(str(part.get("source", "")))}
    if "format" in part:
        found["Format"] = escape(str(part["format"]))
    found["Rows"] = f"{count(part.get('rows', 0))}"
    if "read" in part:
        found["Rows"] += f" of {count(part['read'])} read" if part["read"] != part.get("rows") else ""
        reasons = "; ".join(f"{count(n)}: {escape(why)}" for why, n in part["dropped"].items())
        found["Dropped of the source"] = reasons or "none"
        found["Truncated"] = count(part["truncated"])
    if n := part.get("lengths"):
        found["Length in tokens"] = (
            f"{n['shortest']} to {n['longest']}; mean {n['mean']:.0f}, median {n['median']}, 95 % up to {n['p95']}"
        )
        trained, tokens = part["trained_tokens"], part["tokens"]
        found["Trained tokens"] = f"{count(trained)} of {count(tokens)} ({share(trained, tokens)})"
    found["sha256"] = f"<code>{escape(str(part.get('sha256', '')))}</code>"
    return found


def resolved(run: Run) -> str:
    """The recipe, every key with its value."""
    text = (run.folder / RESOLVED).read_text(encoding="utf-8", errors="replace")
    return f'<div class="card"><pre>{escape(text)}</pre></div>'


def versions(environment: Mapping[str, Any]) -> str:
    """What it ran on."""
    other = ("data", "base", "command", "device", "processes", "seed", "steps", "parameters", "began")
    found = {k: v for k, v in environment.items() if k not in other and isinstance(v, str)}
    base = environment.get("base") or {}
    if base.get("commit"):
        found["commit of the base"] = base["commit"]
    if environment.get("command"):
        found["command"] = environment["command"]
    return table(found.items())


def _of(step: int, steps: int | None) -> str:
    return count(step) if steps in (None, step) else f"{count(step)} of {count(steps)}"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns; every text is escaped."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f'<div class="card"><table><tbody>{body}</tbody></table></div>' if body else ""
