"""A check as text: the same lines on a terminal, where styles show, and in a file, where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from inlay.data import Shown
from inlay.data.report import numbers
from inlay.errors import optional
from inlay.preflight.check import Check, Row
from inlay.readable import count, duration, share, size
from inlay.recipe.recipe import FULL

optional("rich", "cli")
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

WIDTH, _MARGIN = 100, 12
_RUN = 600  # characters of a run that are shown
_MARKS = (("[[", "]]"), ("<<<", ">>>"), ("{{{", "}}}"), ("[[[[", "]]]]"))
_CONSOLE = Console(width=WIDTH)  # that rich may wrap lines
_TRAINED, _PROMPT, _TITLE, _STOP, _WARNING, _GOOD = "bold green", "dim", "bold", "bold red", "yellow", "green"


def lines(check: Check, styled: bool = False) -> Iterator[Text]:
    """At most `WIDTH` wide, but for the rows' text. What is trained has a style if `styled`, else marks around it."""
    parts = [_data(check), _rows(check.rows, styled), _model(check), _memory(check), _time(check), _verdict(check)]
    for part in parts:
        if found := list(part):
            yield from [*found, Text()]


def _titled(title: str, texts: Iterable[str], style: str = _TITLE) -> Iterator[Text]:
    """Texts beside their title, wrapped."""
    for n, text in enumerate(texts):
        for i, line in enumerate(Text(text).wrap(_CONSOLE, WIDTH - _MARGIN - 2)):
            yield Text.assemble(
                (f"{'' if n or i else title:<{_MARGIN}}", style), "  " if i else "", line.plain.rstrip()
            )


def _data(check: Check) -> Iterator[Text]:
    report = check.report
    if report is None or report.lengths is None:
        return
    n, found = report.lengths, "found by the columns" if report.detected else "as told; it has the columns"
    texts = [report.source, f"format {report.format}, {found} {', '.join(report.columns)}"]
    out = f"; {count(check.held_out)} to evaluate on" if check.held_out else ""
    texts.append(f"{count(report.kept)} of {count(report.rows)} rows kept{out}")
    for what, reasons in (("dropped", report.dropped), ("note", report.notes)):
        texts += [f"{what}: {count(len(rows))}, {reason} (rows {numbers(rows)})" for reason, rows in reasons.items()]
    texts.append(
        f"{n.shortest} to {count(n.longest)} tokens, mean {n.mean:.0f}, median {n.median}, 95 % up to {count(n.p95)}; "
        f"{count(len(report.truncated))} rows cut at {report.limit}"
    )
    texts.append(f"{count(report.tokens)} tokens, {share(report.trained_tokens, report.tokens)} of them trained")
    for token, times in report.end_tokens.items():
        rows = "every row" if times == report.kept else f"{count(times)} rows"
        stops = "does not stop" if token in check.found.endless else "stops"
        texts.append(f"{rows}: the end token {token!r} is trained, and generation {stops} there")
    if not report.end_tokens:
        texts.append("no row: an end token is trained")
    if report.duplicates:
        repeats = numbers([row for row, _ in report.duplicates])
        texts.append(f"{count(len(report.duplicates))} rows repeat an earlier one (rows {repeats})")
    yield from _titled("data", texts)


def _rows(rows: list[Row], styled: bool) -> Iterator[Text]:
    if not rows:
        return
    text = "".join(run.text for row in rows for run in row.runs)
    marks = ("", "") if styled else next((m for m in _MARKS if not any(mark in text for mark in m)), _MARKS[-1])
    legend = Text("trained".join(marks), _TRAINED if styled else "")
    yield Text.assemble((f"{'rows':<{_MARGIN}}", _TITLE), "as the model sees them: ", legend)
    for row in rows:
        yield Text(f"  row {row.number}: {count(row.tokens)} tokens, {count(row.trained)} of them trained")
        whole = Text()
        for run in row.runs:
            whole.append(marks[0] * run.trained + _shortened(run) + marks[1] * run.trained, _style(run))
        for line in whole.split("\n", allow_blank=True):
            for i, piece in enumerate(line.wrap(_CONSOLE, WIDTH - 4) or [line]):
                yield Text.assemble(("    " if i else "  | ", _PROMPT), piece)


def _style(run: Shown) -> str:
    return _TRAINED if run.trained else _PROMPT


def _shortened(run: Shown) -> str:
    """The start and the end of a long text."""
    left = len(run.text) - _RUN
    if left <= 100:
        return run.text
    return f"{run.text[: _RUN - 150]} ... {count(left)} characters more ... {run.text[-150:]}"


def _model(check: Check) -> Iterator[Text]:
    adapter, found = check.recipe.adapter, check.parameters
    if check.base is None:
        return
    texts = [f"{check.recipe.model.name} ({check.base})"]
    if found is not None:
        what = "all is trained" if adapter.method == FULL else adapter.method
        texts.append(
            f"{what}: {count(found.trained)} of {count(found.total)} parameters are trained "
            f"({share(found.trained, found.total)}); {size(found.saved)} on disk"
        )
    yield from _titled("model", [*texts, *_missing(check, "parameters")])


def _memory(check: Check) -> Iterator[Text]:
    room = check.room
    if room is None:
        yield from _titled("memory", _missing(check, "room"))
        return
    memory, kind = room.memory, "packs" if check.recipe.data.packing else "rows"
    yield from _titled("memory", [f"of a step on the {room.batch} longest {kind}, {count(room.length)} tokens each"])
    parts = {
        "weights": memory.weights,
        "adapter, gradients, optimizer": memory.trained,
        "activations": memory.activations,
        "logits and loss": memory.logits,
        "total at the peak": memory.total,
    }
    if check.recipe.adapter.method == FULL:
        parts = {name.removeprefix("adapter, "): n for name, n in parts.items()}
    for name, n in parts.items():
        yield Text(f"{'':<{_MARGIN}}{name:<30}{size(n):>12}")
    style = _GOOD if room.fits else _WARNING
    more = f"; so does train.batch={room.largest}" if room.largest > room.batch else ""
    fits = f"fits{more}" if room.fits else "does not fit"
    yield Text.assemble(f"{'':<{_MARGIN}}{'free on ' + room.device:<30}{size(room.free):>12}   ", (fits, style))


def _time(check: Check) -> Iterator[Text]:
    found, how = check.duration, check.recipe.train
    if found is None:
        yield from _titled("time", _missing(check, "duration"))
        return
    size_of, kind = count(how.batch * how.accumulation), "packs" if check.recipe.data.packing else "rows"
    texts = [f"{count(found.steps)} steps of {size_of} {kind}; {count(found.tokens)} tokens, padding included"]
    tera = 0.0 if found.flops is None else found.flops / 1e12
    flops = "" if not tera else f"{tera:,.0f} TFLOP " if tera >= 100 else f"{tera:.3g} TFLOP "
    texts.append(f"about {duration(found.seconds)}: {flops}{found.assumed}")
    yield from _titled("time", texts)


def _missing(check: Check, name: str) -> list[str]:
    reason = check.unknown.get(name)
    return [] if reason is None else [f"no estimate: {reason}"]


def _verdict(check: Check) -> Iterator[Text]:
    yield from (line for text in check.warnings for line in _titled("WARNING", text.splitlines(), _WARNING))
    yield from (line for text in check.stops for line in _titled("STOP", text.splitlines(), _STOP))
    if check.ok and not check.warnings:
        yield Text("Nothing stands in the way of training.", _GOOD)
    elif check.ok:
        yield Text("Nothing stops the training. Look at what is at WARNING first.", _WARNING)
    else:
        faults = "what is at STOP" if len(check.stops) == 1 else f"what is at the {len(check.stops)} STOPs"
        yield Text(f"Put right {faults}, then train.", _STOP)
