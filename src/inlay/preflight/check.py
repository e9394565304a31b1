"""What a recipe will do, before anything is trained: its rows as the model sees them, its sizes, and what is wrong.

print(check(Recipe.load("recipe.yaml")))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inlay.data import Prepared, Report, Shown, preview
from inlay.errors import InlayError, ResumeError
from inlay.preflight.estimates import ROOM, Duration, Estimates, Parameters, Room
from inlay.readable import size
from inlay.recipe.findings import Findings, findings
from inlay.recipe.recipe import Recipe
from inlay.recipe.rows import load_rows
from inlay.recipe.sections import Parallel
from inlay.runs.run import Run
from inlay.train.trackers import check_trackers
from inlay.train.training import check_folder


@dataclass(frozen=True)
class Row:
    """A row as the model sees it.

    Attributes:
        number: of the row in its source.
        runs: its text in runs of tokens that are trained, or not.
        tokens, trained: how many there are.
    """

    number: int
    runs: list[Shown]
    tokens: int
    trained: int


@dataclass(frozen=True)
class Check:
    """What was found. `str()` is text for people, `to_dict()` for programs.

    Attributes:
        recipe: what was checked.
        report: of the rows to train on; None if they cannot be read. `held_out`: how many rows are evaluated on.
        rows: the first rows.
        base: the base's class, and its dtype if that is known; None if its config cannot be read.
        found: what is wrong, and what both parts of the rows have.
        parameters, room, duration: estimates; None where there is none.
        unknown: why an estimate is missing.
    """

    recipe: Recipe
    report: Report | None = None
    held_out: int = 0
    rows: list[Row] = field(default_factory=list)
    base: str | None = None
    found: Findings = field(default_factory=Findings)
    parameters: Parameters | None = None
    room: Room | None = None
    duration: Duration | None = None
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def stops(self) -> list[str]:
        """What makes the run useless or impossible, each with what to do."""
        return self.found.stops

    @property
    def warnings(self) -> list[str]:
        """What should be looked at, and may be meant so."""
        return self.found.warnings

    @property
    def ok(self) -> bool:
        """Whether nothing stops it."""
        return not self.stops

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(row), "runs": [run._asdict() for run in row.runs]} for row in self.rows]
        parts = {name: getattr(self, name) for name in ("parameters", "room", "duration")}
        return {
            "ok": self.ok,
            **asdict(self.found),
            "data": None if self.report is None else self.report.to_dict(),
            "held_out": self.held_out,
            "rows": rows,
            "base": self.base,
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
            "unknown": self.unknown,
            "recipe": self.recipe.resolved(),
        }

    def __str__(self) -> str:
        from inlay.preflight.text import lines

        return "\n".join(line.plain for line in lines(self))


def check(recipe: Recipe, rows: int = 3, measure: bool = False) -> Check:
    """Looks at everything that can be known without training. Nothing is written; errors are collected as stops.

    Args:
        recipe: of `Recipe.load` or `Recipe.make`.
        rows: how many rows to show.
        measure: time real steps, which reads the weights, instead of estimating from the FLOPs.
    """
    with _quiet():
        return _check(recipe, rows, measure)


def _check(recipe: Recipe, shown: int, measure: bool) -> Check:
    from inlay.recipe.base import load_config, load_tokenizer

    found, unknown = Findings(), dict[str, str]()
    whole = recipe.model_copy(update={"parallel": Parallel()})  # one device is looked at, which holds everything
    tokenizer = config = prepared = held_out = None
    with _noted(found.stops):
        check_trackers(recipe.report.trackers)
    with _noted(found.stops):
        config = load_config(recipe)
    with _noted(found.stops):
        tokenizer = load_tokenizer(recipe)
    if tokenizer is not None:
        with _noted(found.stops):
            prepared, held_out = load_rows(recipe, tokenizer)
        if prepared is None and recipe.data.eval is not None:  # perhaps it is only the evaluation that cannot be read
            with _noted([]):
                prepared, _ = load_rows(_without_evaluation(recipe), tokenizer)
    if prepared is not None and config is not None:
        looked = findings(recipe, tokenizer, prepared, held_out, config)
        looked.stops[:0] = found.stops
        found = looked
    try:
        check_folder(Run(Path(recipe.out)), recipe, fresh=False)
    except ResumeError as error:
        found.warnings.append(str(error))
    except InlayError as error:
        found.stops.append(str(error))

    estimates = Estimates(whole, prepared, tokenizer, config)
    results: dict[str, Any] = {}
    if config is not None:
        wanted: dict[str, Callable[[], Any]] = {"parameters": estimates.parameters}
        if prepared is not None:
            wanted |= {"room": estimates.room, "duration": estimates.measured if measure else estimates.duration}
        for name, estimate in wanted.items():
            try:
                results[name] = estimate()
            except InlayError as error:
                found.stops += [] if str(error) in found.stops else [str(error)]
            except Exception as error:  # of a model's code, or of torch: it does not run on tensors without memory
                unknown[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else ""
    if (room := results.get("room")) is not None and not room.fits:
        found.warnings.append(_too_large(room, recipe))
    return Check(
        recipe,
        None if prepared is None else prepared.report,
        0 if held_out is None else len(held_out),
        [] if prepared is None else _shown(prepared, tokenizer, shown),
        None if config is None else _described(config, estimates if "parameters" in results else None),
        found,
        **results,
        unknown=unknown,
    )


def _described(config: Any, estimates: Estimates | None) -> str:
    name = (config.architectures or [config.model_type])[0]
    return name if estimates is None else f"{name}, {estimates.dtype}"


def settings(changes: Mapping[str, Any]) -> str:
    """`--set train.batch=2 --set train.accumulation=8`"""
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())


def _too_large(room: Room, recipe: Recipe) -> str:
    text = (
        f"A step takes {size(room.memory.total)} at its peak. {room.device[0].upper()}{room.device[1:]} has "
        f"{size(room.free)} free, of which {ROOM:.0%} are counted on. "
    )
    change = room.change(recipe)
    if change is None:
        return text + "Nothing that was tried makes it fit: take a smaller base, or more devices (docs/train.md)."
    return text + f"This would fit: {settings(change)}"


def _shown(prepared: Prepared, tokenizer: Any, n: int) -> list[Row]:
    rows = []
    for i, runs in enumerate(preview(prepared, tokenizer, n)):
        ids, trained = prepared.tokens(i)
        rows.append(Row(prepared.rows[i], runs, len(ids), sum(trained)))
    return rows


def _without_evaluation(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": None})})


@contextmanager
def _noted(stops: list[str]) -> Iterator[None]:
    """Errors of Inlay within this block are noted, and end it."""
    try:
        yield
    except InlayError as error:
        stops.append(str(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers says of models that it loads or makes is not about what is checked."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
