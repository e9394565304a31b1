"""The runs in a folder, and one run in detail: what `inlay runs` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InlayError, MissingFileError
from inlay.readable import place
from inlay.runs.history import History
from inlay.runs.report.commands import commands
from inlay.runs.report.verdict import Verdict, verdict
from inlay.runs.run import ENVIRONMENT, METRICS, RESOLVED, Run

FINISHED, STOPPED, UNFINISHED, BROKEN = "finished", "stopped", "unfinished", "broken"

_DEEP = 3  # folders below the one that is searched


@dataclass(frozen=True)
class Listed:
    """A run in a list.

    Attributes:
        folder: where it is.
        state: "finished", "stopped" (it says why), "unfinished" (killed, or still running), or "broken".
        problem: what is wrong with a broken one.
        step, steps: how far it came, and how many steps it was to make.
        loss: the last of training; held_out: the best of evaluation.
        when: the time of its last line, or of its folder, in seconds since 1970.
        size: bytes on disk.
    """

    folder: str
    state: str
    when: float
    size: int
    method: str | None = None
    base: str | None = None
    data: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    held_out: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Details:
    """One run.

    Attributes:
        run: as in a list.
        verdict: what came of it.
        files: name in its folder -> bytes.
        commands: what can be done with it.
    """

    run: Listed
    verdict: Verdict
    files: dict[str, int]
    commands: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def list_runs(folder: str | Path) -> list[Listed]:
    """The runs in a folder and in folders of it, the newest first; those that cannot be read say why.

    Raises MissingFileError if there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFileError(
            f"There is no folder '{folder}' (looked in '{Path.cwd()}'). Give the folder of a run, or of runs."
        )
    return sorted(map(_listed, _found(root, _DEEP)), key=lambda run: (-run.when, run.folder))


def describe_run(run: Run) -> Details:
    """One run in detail. Raises what reading its files does: CorruptFileError, ConfigError, MissingFileError."""
    history, environment = History.of(run.metrics()), run.environment
    files = {p.name + "/" * p.is_dir(): _size(p) for p in sorted(run.folder.iterdir()) if not p.name.startswith(".")}
    found = verdict(history, run.finished, environment.get("steps"))
    return Details(_read(run), found, files, commands(run))


def _found(folder: Path, deep: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in (RESOLVED, ENVIRONMENT, METRICS)):
        yield folder
    elif deep:
        inside = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        for path in sorted(inside):
            yield from _found(path, deep - 1)


def _listed(folder: Path) -> Listed:
    try:
        return _read(Run.open(folder))
    except (InlayError, OSError) as error:
        problem = str(error).splitlines()[0]
        return Listed(str(folder), BROKEN, folder.stat().st_mtime, _size(folder), problem=problem)


def _read(run: Run) -> Listed:
    recipe, environment, history = run.recipe, run.environment, History.of(run.metrics())
    finished = run.finished and bool(run.result)  # which is read
    losses, best = history.losses, history.best
    return Listed(
        folder=str(run.folder),
        state=FINISHED if finished else STOPPED if history.stopped is not None else UNFINISHED,
        when=history.last_time or run.folder.stat().st_mtime,
        size=_size(run.folder),
        method=recipe.adapter.method,
        base=place(recipe.model.name),
        data=place(recipe.data.train),
        step=history.step,
        steps=environment.get("steps"),
        loss=losses[-1][1] if losses else None,
        held_out=None if best is None else best[1],
    )


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
