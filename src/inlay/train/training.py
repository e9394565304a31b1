"""One run, from its recipe to its folder.

A run that was stopped goes on by itself when it is started again with the same recipe and the same data, and ends with
the bits it would have ended with. With another recipe or other data it is refused, with what differs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import ResumeError, StateError
from inlay.io import plain
from inlay.recipe.recipe import FULL, Recipe
from inlay.runs.history import STOPPED
from inlay.runs.run import (
    CHECKPOINTS,
    ENVIRONMENT,
    FINISHED,
    METRICS,
    RECIPE,
    REPORT,
    RESOLVED,
    SAMPLES,
    Run,
    hashes,
)
from inlay.runs.said import to_nobody, to_stderr
from inlay.train.environment import changes_between, environment_of, other_versions


def train(recipe: Recipe, fresh: bool = False, say: Callable[[str], None] | None = None) -> Run:
    """Trains what the recipe says, or goes on with it, and returns the run's folder.

    Args:
        recipe: of `Recipe.load` or `Recipe.make`.
        fresh: delete what an earlier run left in the folder, and start over.
        say: is told what happens, a line each; by default stderr is.

    Raises:
        ResumeError: the folder holds a run of another recipe or other data; the message lists what differs.
        StateError: the folder holds something else.
        NumericsError: a loss or gradient is not finite; the message names the step and the rows.
        KeyboardInterrupt: Ctrl-C. There is a checkpoint; its message is the command that goes on.
    """
    say = say or to_stderr
    run = Run(Path(recipe.out))
    check_folder(run, recipe, fresh)
    if run.exists and not fresh and run.finished:
        say(f"The run in '{run.folder}' is finished. Nothing was done; --fresh trains it again.")
        return run
    from inlay.train.parallel import own_environment

    with own_environment():
        return _Training(recipe, run, fresh, say).run_through()


def check_folder(run: Run, recipe: Recipe, fresh: bool) -> None:
    """Raises StateError if the folder cannot hold the run, ResumeError if it holds one of another recipe."""
    if run.folder.exists() and not run.folder.is_dir():
        raise StateError(f"out={recipe.out!r} is a file: choose another folder.")
    if not run.exists:
        if run.folder.is_dir() and (there := sorted(p.name for p in run.folder.iterdir() if p.name != RECIPE)):
            others = [name for name in there if not name.startswith(".")]
            if others and not _begun(run):
                raise StateError(
                    f"out={recipe.out!r} holds no run, but {', '.join(others[:5])}: choose another folder."
                )
        return
    if not fresh and (changes := recipe.changes(run.recipe.resolved())):
        raise _differs(run, changes)


def _begun(run: Run) -> bool:
    """Whether a run, or its removal, was stopped before its record was there."""
    return (run.folder / ENVIRONMENT).is_file()


def _differs(run: Run, changes: list[str]) -> ResumeError:
    return ResumeError(
        f"The run in '{run.folder}' was begun otherwise: {'; '.join(changes)}. "
        "Take that back to go on, choose another `out`, or start over with --fresh."
    )


@dataclass
class _Training:
    """One call of `train`."""

    recipe: Recipe
    run: Run
    fresh: bool
    say: Callable[[str], None]

    def run_through(self) -> Run:
        import torch
        from transformers import set_seed

        from inlay.recipe.base import load_config, load_model, load_tokenizer
        from inlay.recipe.findings import findings
        from inlay.recipe.rows import items, load_rows, steps_of
        from inlay.recipe.trained import trained
        from inlay.train.arguments import training_arguments
        from inlay.train.parallel import check_layers, check_processes, effective, several, sharding
        from inlay.train.trackers import check_trackers, tracked

        recipe = self.recipe
        check_trackers(recipe.report.trackers)
        self.sharded = sharding(recipe)
        arguments = training_arguments(recipe, self.run.folder / CHECKPOINTS)
        self.first, self.processes = arguments.process_index == 0, arguments.world_size
        if not self.first:
            self.say = to_nobody
        check_processes(recipe, arguments)
        if several():
            torch.distributed.barrier()  # all have looked at the folder before one writes to it
        tokenizer = load_tokenizer(recipe)
        rows, held_out = load_rows(recipe, tokenizer)
        config = load_config(recipe)
        found = findings(recipe, tokenizer, rows, held_out, config)
        for warning in found.warnings:
            self.say(f"WARNING: {warning}")
        found.raise_stops()
        environment = environment_of(recipe, config, rows, held_out, processes=self.processes, sharded=self.sharded)
        self.check_environment(environment)
        model = load_model(recipe)
        check_layers(recipe, model)
        if recipe.model.quantize == "none" and self.sharded is None:  # which else places it part by part
            model.to(torch.device("cpu") if recipe.train.device == "cpu" else arguments.device)
        begin = None if self.fresh else self.begin()
        if self.first:
            if self.fresh:
                self.run.remove()
            self.record(environment)
        parts = items(recipe, rows)
        steps = steps_of(recipe, len(parts), arguments)
        self.say(effective(recipe, self.processes, steps))
        set_seed(recipe.train.seed)
        model = trained(recipe, model, steps)
        if self.first:
            self.note(model, steps)
        with tracked(self.run, recipe.report.trackers if self.first else (), self.say):
            trainer = self.trainer(model, arguments, parts, rows.report, held_out, tokenizer)
            trainer.args.eval_on_start = held_out is not None and begin is None  # the base's loss, to compare with
            try:
                self.finish(trainer, tokenizer, begin, rows.report.format)
            except (Exception, KeyboardInterrupt) as error:
                self.stopped(trainer.state.global_step, error)
                raise
        self.report()
        return self.run

    # ------------------------------------------------------------------ parts

    def check_environment(self, new: dict[str, Any]) -> None:
        """Raises ResumeError if the data or the base are not those the run was begun with."""
        if self.fresh or not self.run.exists:
            return
        old = self.run.environment
        if found := changes_between(old, new):
            raise _differs(self.run, found)
        if found := other_versions(old, new):
            self.say(f"WARNING: the run goes on with {', '.join(found)}: its end may differ in the last bits.")

    def begin(self) -> Path | None:
        """The checkpoint to go on from. Those that a kill left half written are deleted."""
        whole, torn = self.run.checkpoints()
        for path in torn:
            self.say(f"{path.name} was not written to its end: passed over.")
            if self.first:
                shutil.rmtree(path)
        if whole:
            self.say(f"Going on from {whole[-1].name}.")
        return whole[-1] if whole else None

    def record(self, environment: dict[str, Any]) -> None:
        """The files that say what is run; `resolved.yaml`, which makes the folder a run, last."""
        folder = self.run.folder
        if self.run.exists:
            return
        folder.mkdir(parents=True, exist_ok=True)
        plain.write_json(folder / ENVIRONMENT, environment)
        if not (folder / RECIPE).is_file():
            given = self.recipe.model_dump(mode="json", exclude_unset=True)
            plain.write_yaml(folder / RECIPE, given)
        plain.write_yaml(folder / RESOLVED, self.recipe.resolved())

    def note(self, model: Any, steps: int) -> None:
        """Adds to `environment.json` what is known once there is a model."""
        from inlay.status import count_parameters

        trainable, total = count_parameters(model)
        noted = {"steps": steps, "parameters": {"trainable": trainable, "total": total}}
        plain.write_json(self.run.folder / ENVIRONMENT, {**self.run.environment, **noted})

    def watch(self, model: Any, tokenizer: Any, when: str, step: int, format: str) -> None:
        """Answers to the prompts, unless they are there."""
        from inlay.comparison.answers import Decoding, write
        from inlay.comparison.questions import questions_of

        prompts = self.recipe.watch.prompts
        if not prompts or any(when in s for s in self.run.samples()):
            return
        questions = questions_of(prompts, tokenizer, format=format)
        texts = write(model, questions, tokenizer, Decoding(max_new_tokens=self.recipe.watch.max_new_tokens))
        if self.first:  # all or none, so that a kill leaves none out
            new = ({"step": step, "prompt": p, when: text} for p, text in zip(prompts, texts, strict=True))
            plain.write_lines(self.run.folder / SAMPLES, [*self.run.samples(), *new])

    def before(self, model: Any, tokenizer: Any, format: str) -> None:
        """The base's answers, once the model lies where it is trained."""
        with nullcontext() if self.recipe.adapter.method == FULL else model.disable_adapter():
            self.watch(model, tokenizer, "before", 0, format)

    def trainer(self, model: Any, arguments: Any, parts: Any, report: Any, held_out: Any, tokenizer: Any) -> Any:
        """Trainer, with all that watches it."""
        from transformers import EarlyStoppingCallback, PrinterCallback

        from inlay.data import Collator, FlatCollator
        from inlay.hf.callbacks import AdapterSchedule
        from inlay.recipe.rows import items
        from inlay.train.callbacks import AtFirst, Finite, Interrupt, Journal, Progress, Rows
        from inlay.train.numbered import Numbered, WithRows

        collate: Any = FlatCollator() if self.recipe.data.packing else Collator.of(tokenizer)
        journal = Journal(self.run)
        self.interrupt, self.progress = Interrupt(self.say), Progress(self.say, journal)
        finite = Finite(self.run, report.source)
        before = AtFirst(lambda model: self.before(model, tokenizer, report.format))
        callbacks: list[Any] = [before, finite, self.interrupt, journal, self.progress]
        if self.recipe.adapter.method != FULL:
            callbacks.append(AdapterSchedule())
        if self.recipe.train.early_stopping is not None:
            callbacks.append(EarlyStoppingCallback(self.recipe.train.early_stopping))
        trainer = Rows(
            model=model,
            args=arguments,
            data_collator=WithRows(collate),
            train_dataset=Numbered(parts),
            eval_dataset=None if held_out is None else items(self.recipe, held_out),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.seen, finite.trainer = [], trainer
        return trainer

    def finish(self, trainer: Any, tokenizer: Any, begin: Path | None, format: str) -> None:
        """Trains, and writes what remains."""
        try:
            with self.interrupt:
                trainer.train(resume_from_checkpoint=None if begin is None else str(begin))
        finally:
            self.progress.close()
        state, folder = trainer.state, self.run.adapter
        if self.interrupt.asked and state.global_step < state.max_steps:
            program = "inlay" if self.processes == 1 else f"torchrun --nproc_per_node {self.processes} -m inlay"
            raise KeyboardInterrupt(
                f"Stopped at step {state.global_step} of {state.max_steps}, with a checkpoint. To go on:\n"
                f"    {program} {self.run.command}"
            )
        trainer.save_model(str(folder))
        self.watch(trainer.model, tokenizer, "after", state.global_step, format)
        if self.first:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of no use
            tokenizer.save_pretrained(str(folder))
            best = state.best_global_step if trainer.args.load_best_model_at_end else None
            result = {"format": format, "step": best or state.global_step, "steps": state.global_step}
            plain.write_json(folder / FINISHED, {**result, "eval_loss": state.best_metric, **hashes(folder)})
            self.say(f"Finished: '{folder}'.")

    def stopped(self, step: int, error: BaseException) -> None:
        """Writes why the run did not come to its end, and the page of what there is unless there is a hurry."""
        if not self.first:
            return
        interrupted = isinstance(error, KeyboardInterrupt)
        why = "it was interrupted (Ctrl-C)." if interrupted else str(error).strip() or type(error).__name__
        try:
            plain.append_line(self.run.folder / METRICS, {"step": step, "time": time.time(), STOPPED: why})
        except OSError as failed:  # the disk may be what it stopped at
            self.say(f"WARNING: why the run stopped could not be written: {failed}")
            return
        if not interrupted or error.args:  # a second Ctrl-C says nothing, and stops at once
            self.report()

    def report(self) -> None:
        """The page. What is trained is on disk by now: whatever goes wrong with its page loses nothing of it."""
        if not self.first or not self.recipe.report.html:
            return
        try:
            self.say(f"Report: '{self.run.report()}'.")
        except Exception as error:
            self.say(f"WARNING: there is no {REPORT}: {error} Later: inlay runs {self.run.folder} --report")


__all__ = ["train"]
