"""Curves as SVG that stands in a page: its text is text, and its colours are the page's (CSS variables).

The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from inlay.errors import optional
from inlay.readable import loss
from inlay.runs.history import History, Point

# what is drawn in, and what it becomes: matplotlib knows no CSS
_INK, _FAINT, _LINE, _TRAIN, _HELD = "#010101", "#020202", "#030303", "#040404", "#050505"
_COLOURS = {_INK: "--ink", _FAINT: "--faint", _LINE: "--line", _TRAIN: "--train", _HELD: "--held"}

_SMOOTHED_FROM = 40  # points; with fewer every one can be seen
_SEEN = 1500  # points of a line at most; no screen shows more


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        title: what is shown, over it.
        svg: the picture, or its wide and its narrow form.
    """

    title: str
    svg: str


def charts(history: History) -> list[Chart]:
    """Loss first, then learning rate, gradient norm and tokens a second, those that there are numbers for.

    Raises MissingExtraError if matplotlib cannot be imported.
    """
    found = []
    if history.losses or history.evaluations:
        wide, narrow = (_losses(history, size) for size in ((10.4, 3.7), (4.0, 3.0)))
        found.append(Chart("Loss", f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'))
    for key, (title, noisy) in _OTHERS.items():
        if points := history.series(key):
            found.append(Chart(title, _line(title, points, noisy)))
    return found


# key -> title, and whether it is noisy
_OTHERS = {
    "learning_rate": ("Learning rate", False),
    "grad_norm": ("Gradient norm", True),
    "tokens_per_second": ("Tokens per second", True),
}


def _losses(history: History, size: tuple[float, float]) -> str:
    train, held, best = history.losses, history.evaluations, history.best
    with _figure(f"loss {size}", size) as (figure, axes):
        if train:
            _draw_noisy(axes, train, "train")
        if held:
            _draw(axes, held, _HELD, "held out", marked=len(held) <= _SMOOTHED_FROM)
        if best is not None:
            axes.axvline(best[0], color=_HELD, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
            axes.plot(*best, "o", color=_HELD, markersize=7, markeredgewidth=0, zorder=5)
            right = best[0] > sum(axes.get_xlim()) / 2
            axes.annotate(
                f"best {loss(best[1])}, step {best[0]}",
                (best[0], 1),
                xycoords=("data", "axes fraction"),
                xytext=(-6 if right else 6, -4),
                textcoords="offset points",
                ha="right" if right else "left",
                va="top",
                color=_HELD,
            )
        legend = figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=1.4, borderpad=0)
        for text in legend.get_texts():
            text.set_color(_INK)
        return _svg(figure, _said(history))


def _line(title: str, points: Sequence[Point], noisy: bool) -> str:
    with _figure(title, (3.3, 1.75)) as (figure, axes):
        if noisy:
            _draw_noisy(axes, points, title)
        else:
            _draw(axes, points, _TRAIN, title)
        axes.xaxis.get_major_locator().set_params(nbins=4)
        least, most = (f(v for _, v in points) for f in (min, max))
        if least >= 0 < most:
            axes.set_ylim(0, 1.08 * most)
        if most < 0.01:
            axes.yaxis.set_major_formatter("{x:.3g}")  # rather than a factor above the axis
        return _svg(figure, f"{title}: {_from_to(points, '.4g')}.")


def _draw(axes: Any, points: Sequence[Point], colour: str, label: str, marked: bool = False, alpha: float = 1) -> None:
    """A line; a point that is alone would not be seen as one. Of more points than can be seen, some."""
    if len(points) > _SEEN:
        points = [*points[:: -(-len(points) // _SEEN)], points[-1]]
    marker = "o" if marked or len(points) == 1 else ""
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, marker=marker, markersize=3.5, color=colour, alpha=alpha, label=label, linewidth=1.6)


def _draw_noisy(axes: Any, points: Sequence[Point], label: str) -> None:
    """A line; of many points a faint one, with a smooth one upon it."""
    many = len(points) >= _SMOOTHED_FROM
    _draw(axes, points, _TRAIN, label, alpha=0.3 if many else 1)
    if many:
        _draw(axes, smoothed(points), _TRAIN, f"{label}, smoothed")


def smoothed(points: Sequence[Point]) -> list[Point]:
    r"""$s_t = 0.9 s_{t-1} + 0.1 v_t$, divided by $1 - 0.9^t$ so that it does not begin at 0."""
    made, s = [], 0.0
    for t, (step, value) in enumerate(points, 1):
        s = 0.9 * s + 0.1 * value
        made.append((step, s / (1 - 0.9**t)))
    return made


# ---------------------------------------------------------------------- matplotlib


@contextmanager
def _figure(salt: str, size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, within settings of matplotlib that are as before afterwards."""
    matplotlib, figures = optional("matplotlib", "cli"), optional("matplotlib.figure", "cli")
    settings = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5}
    with matplotlib.rc_context(settings):
        figure = figures.Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_LINE)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelcolor=_FAINT, pad=5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.yaxis.get_major_locator().set_params(nbins=5)
        axes.set_xlabel("step", color=_FAINT)
        yield figure, axes


def _svg(figure: Any, said: str) -> str:
    """The drawing, as a part of a page: without names that two drawings would both have, or an address."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    view = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index("<g ", text.index("<svg")) : text.rindex("</svg>")]
    used = set(re.findall(r'(?:href="|url\()#(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r"<defs>\s*<style.*?</defs>|<!--.*?-->", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;]*; ", "", body)  # the page's
    for drawn, variable in _COLOURS.items():
        body = body.replace(drawn, f"var({variable})")
    body = "\n".join(_lines(body))
    box = view[0] if view else ""
    return f'<svg {box} role="img" aria-label="{escape(said)}"><title>{escape(said)}</title>{body}</svg>'


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())


def _said(history: History) -> str:
    """The picture in words."""
    parts = []
    if history.losses:
        parts.append(f"Loss of training: {_from_to(history.losses)}.")
    if history.evaluations:
        parts.append(f"Held-out loss: {_from_to(history.evaluations)}.")
    if history.best is not None:
        parts.append(f"The lowest held-out loss is {loss(history.best[1])}, at step {history.best[0]}.")
    return " ".join(parts)


def _from_to(points: Sequence[Point], form: str = ".3f") -> str:
    (a, first), (b, last) = points[0], points[-1]
    return f"{first:{form}} at step {a}" + (f", {last:{form}} at step {b}" if a != b else "")


__all__ = ["Chart", "charts", "smoothed"]
