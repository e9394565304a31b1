"""Self-instruct: a model writes tasks from seeds, and those that are sound and new are kept.

    prompt k = head + `shots` seeds drawn for k       tasks = parse(model(prompt k))
    a task is kept if no filter drops it and   max over seeds and rows kept so far of F(task, .) <= threshold

F is ROUGE-L of the instructions (`similarity`). Prompts depend on `seed` and k alone, answers are judged in the order
of k, so the rows depend on the answers and not on when they arrive.
Source: Wang et al., 2023, Self-Instruct; Taori et al., 2023, Stanford Alpaca.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from inlay.errors import ConfigError, DataError, MissingFileError
from inlay.selfinstruct.calls import Calls, Wait
from inlay.selfinstruct.filters import first_to_drop
from inlay.selfinstruct.generate import Function, Model, Reply, Retry, Sampling, ask
from inlay.selfinstruct.journal import Journal
from inlay.selfinstruct.profile import Profile, profile_of
from inlay.selfinstruct.prompt import Prompts, Task, own_seeds, parse, read_seeds
from inlay.selfinstruct.report import Budget, Report
from inlay.selfinstruct.similarity import Pool


def generate_instructions(
    output: str | os.PathLike[str],
    model: Model | Callable[[list[str], Sampling], Sequence[Any]],
    count: int = 100,
    *,
    seeds: str | os.PathLike[str] | Sequence[Task] | None = None,
    profile: str | Profile = "alpaca",
    prompt: str | os.PathLike[str] | None = None,
    shots: int = 3,
    threshold: float = 0.7,
    sampling: Sampling | None = None,
    budget: Budget | None = None,
    retry: Retry | None = None,
    concurrency: int | None = None,
    patience: int = 20,
    seed: int = 42,
    progress: Callable[[Report], object] | None = None,
    waiting: Callable[[str, float], object] | None = None,
    sleep: Callable[[float], object] | None = None,
) -> Report:
    """Ask `model` for tasks until `output` has `count` rows or more; go on where an earlier run at `output` stopped.

    Args:
        output: a JSONL file of rows {instruction, input, output, most_similar_instructions, avg_similarity_score}; its
            journal lies beside it. Rows of the last call beyond `count` are kept, too.
        model: an `Endpoint`, a `TransformersModel`, or a function of (prompts, sampling) that returns the texts.
        seeds: a file in the layout of seed_tasks.jsonl, or tasks; default the profile's.
        profile: "alpaca", "any", "zh", "zh-jieba", or a `Profile`.
        prompt: a text file to use as the prompt's head instead of the profile's.
        shots: seeds per prompt, drawn from the seeds alone as in Alpaca.
        threshold: a task more similar than this to any seed or row is dropped.
        sampling, budget, retry: see there.
        concurrency: calls at a time; default the model's.
        patience: calls in a row without a row kept, after which the run stops.
        seed: of the prompts, and of local sampling.
        progress: called with the report at the start and after each call.
        waiting: called with the reason and the seconds before a call is made again; by the threads of the calls.
        sleep: waits before a call is made again; for tests.

    Returns the report. Raises ConfigError, DataError and MissingFileError before anything is written; ResumeError and
    StateError if `output` belongs to another run; EndpointError if the model cannot be asked. After these, Ctrl-C or
    a kill, the same call goes on: no row is lost, none comes twice, and no answer that arrived is asked for again.
    """
    path, chosen = Path(output), profile_of(profile)
    asked = _asked(model)
    tasks = _seeds(seeds, chosen, shots)
    head = chosen.head if prompt is None else _head(Path(prompt))
    for name, value in (("count", count), ("shots", shots), ("patience", patience), ("concurrency", concurrency or 1)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError.of(name, value, "an integer of at least 1")
    if not 0 <= threshold <= 1:
        raise ConfigError.of("threshold", threshold, "a number from 0 to 1")
    sampling = sampling or Sampling()
    settings = {
        "version": 1,
        "model": asked.name,
        "batch": asked.batch,
        "profile": chosen.name,
        "shots": shots,
        "threshold": threshold,
        "seed": seed,
        "sampling": asdict(replace(sampling, extra=dict(sampling.extra))),
        "prompt": _digest(head),
        "seeds": _digest(json.dumps(tasks)),
    }
    pool = Pool(chosen.tokens, [task.instruction for task in tasks])
    prompts, at_once = Prompts(head, tasks, shots, seed), concurrency or asked.concurrency
    with Journal(path, settings) as journal:
        for row in journal.rows:
            pool.add(row["instruction"])
        run = _Run(journal, pool, chosen, asked, prompts, threshold, sampling, budget or Budget(), 2 * at_once)
        before = len(journal.rows)

        def make(call: int, wait: Wait) -> Reply:
            own = seed * 1_000_003 + call
            return ask(asked, run.prompts_of(call), sampling, retry or Retry(), wait, own, waiting)

        def report(stopped: str = "") -> Report:
            return run.report(path, before, stopped)

        if progress:
            progress(report())
        with Calls(make, run.keep, at_once, sleep) as calls:
            barren = 0
            while len(journal.rows) < count and barren < patience:
                if journal.next_call in journal.replies:
                    barren = 0 if run.judge() else barren + 1
                    if progress:
                        progress(report())
                    continue
                while calls.has_room() and (call := run.next_to_make(calls.flying)) is not None:
                    calls.start(call)
                if not calls.flying:
                    return report("budget")
                calls.receive()
        return report("count" if len(journal.rows) >= count else "barren")


@dataclass
class _Run:
    """What a run does with its journal."""

    journal: Journal
    pool: Pool
    profile: Profile
    model: Model
    prompts: Prompts
    threshold: float
    sampling: Sampling
    budget: Budget
    ahead: int

    def prompts_of(self, call: int) -> list[str]:
        """The prompts of a call."""
        batch = self.model.batch
        return [self.prompts(k) for k in range(call * batch, (call + 1) * batch)]

    def next_to_make(self, flying: Collection[int]) -> int | None:
        """The first call that is neither answered nor on its way, if the budget allows it and it is not far ahead."""
        journal = self.journal
        call = journal.next_call
        while call in journal.replies or call in flying:
            call += 1
        if call >= journal.next_call + self.ahead:
            return None
        most = [self._most(c) for c in (*flying, call)]
        return call if self.budget.allows(*map(sum, zip(journal.usage, *most, strict=True))) else None

    def _most(self, call: int) -> tuple[int, int]:
        """At least what the call can read and write: a token per byte, and some for a chat template's marks."""
        prompts = self.prompts_of(call)
        return sum(len(p.encode()) + 64 for p in prompts), self.sampling.max_tokens * len(prompts)

    def keep(self, call: int, reply: Reply) -> None:
        """Into the journal, what it used with it: as the model says, or else a token per byte."""
        answers = tuple(replace(a, text=a.text.encode("utf-8", "replace").decode()) for a in reply.answers)
        read, written = reply.prompt_tokens, reply.completion_tokens
        if read is None or written is None:
            read = sum(len(p.encode()) for p in self.prompts_of(call))
            written = sum(len(a.text.encode()) for a in answers)
        self.journal.answered(call, replace(reply, answers=answers), (read, written))

    def judge(self) -> int:
        """Keep what is sound and new of the next call's answers; the number of rows kept."""
        journal, before = self.journal, len(self.journal.rows)
        dropped: Counter[str] = Counter()
        for answer in journal.replies[journal.next_call].answers:
            tasks, dropped_here = parse(answer.text, self.prompts.shots, answer.finish_reason == "length")
            dropped["malformed"] += dropped_here
            for task in tasks:
                reason = first_to_drop(task, self.profile.filters)
                if not reason:
                    scores = self.pool.scores(task.instruction)
                    reason = "similar" if scores.max() > self.threshold else None
                if reason:
                    dropped[reason] += 1
                    continue
                journal.accept(
                    {
                        **task._asdict(),
                        "most_similar_instructions": self.pool.closest(scores),
                        "avg_similarity_score": float(scores.mean()),
                    }
                )
                self.pool.add(task.instruction)
        journal.done(dropped)
        return len(journal.rows) - before

    def report(self, path: Path, before: int, stopped: str) -> Report:
        """How far the run is; it had `before` rows when this session began."""
        journal = self.journal
        read, written = journal.usage
        return Report(
            path,
            len(journal.rows),
            len(journal.rows) - before,
            journal.next_call,
            journal.skipped,
            Counter(journal.dropped),
            read,
            written,
            self.budget.cost(read, written),
            stopped,
        )


def _asked(model: Any) -> Model:
    """The model, or the function as one."""
    if hasattr(model, "ask"):
        return cast(Model, model)
    if not callable(model):
        raise ConfigError.of("model", model, "an Endpoint, a TransformersModel, or a function of (prompts, sampling)")
    return Function(model, getattr(model, "__name__", "function"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _head(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"No prompt at {path}. Give a text file, or none for the profile's own.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}).") from None


def _seeds(given: str | os.PathLike[str] | Sequence[Task] | None, profile: Profile, shots: int) -> list[Task]:
    """The seed tasks; there must be as many as a prompt shows."""
    if given is None:
        seeds = own_seeds(profile.seeds)
    else:
        seeds = read_seeds(given) if isinstance(given, (str, os.PathLike)) else [Task(*task) for task in given]
    if len(seeds) < shots:
        raise DataError(f"{len(seeds)} seed tasks, but each prompt shows {shots}: give more seeds, or fewer shots.")
    return seeds
