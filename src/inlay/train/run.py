"""One run, from its recipe to its folder.

A run that was stopped goes on by itself when it is started again with the same recipe and the same data, and ends with
the bits it would have ended with. With another recipe or other data it is refused, with what differs.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, DataError, ResumeError, StateError
from inlay.train import plain
from inlay.train.recipe import FULL, Recipe
from inlay.train.runs import CHECKPOINTS, ENVIRONMENT, FINISHED, RECIPE, RESOLVED, SAMPLES, Run, hashes

_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "datasets", "bitsandbytes")


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
    say = say or _to_stderr
    run = Run(Path(recipe.out))
    _check_folder(run, recipe, fresh)
    if run.exists and not fresh and run.finished:
        say(f"The run in '{run.folder}' is finished. Nothing was done; --fresh trains it again.")
        return run
    return _Training(recipe, run, fresh, say).run_through()


def _check_folder(run: Run, recipe: Recipe, fresh: bool) -> None:
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

        from inlay.data import overlap
        from inlay.train.arguments import training_arguments
        from inlay.train.base import load_model, load_tokenizer

        recipe = self.recipe
        arguments = training_arguments(recipe, self.run.folder / CHECKPOINTS)
        self.first = arguments.process_index == 0
        if not self.first:
            self.say = _to_nobody
        tokenizer = load_tokenizer(recipe)
        rows, held_out = self.data(tokenizer)
        for warning in rows.report.warnings:
            self.say(f"WARNING: {warning}")
        if held_out is not None and (same := overlap(rows, held_out).rows):
            self.say(f"WARNING: {len(same)} rows of the evaluation are trained on, too: its loss will look too good.")
        environment = self.environment(rows, held_out, arguments.world_size)
        self.check_environment(environment)
        model = load_model(recipe)
        rows.check_vocabulary(model.get_input_embeddings().weight.shape[0])
        device = torch.device("cpu") if recipe.train.device == "cpu" else arguments.device
        if recipe.model.quantize == "none":
            model.to(device)
        begin = None if self.fresh else self.begin()
        if self.first:
            if self.fresh:
                self.run.remove()
            self.record(environment)
        self.watch(model, tokenizer, "before", 0, rows.report.format)
        set_seed(recipe.train.seed)
        model = self.adapted(model, rows, arguments)
        trainer = self.trainer(model, arguments, rows, held_out, tokenizer)
        return self.finish(trainer, tokenizer, begin, rows.report.format)

    # ------------------------------------------------------------------ parts

    def data(self, tokenizer: Any) -> tuple[Any, Any]:
        """Rows to train on, and to evaluate on."""
        from inlay.data import prepare

        data = self.recipe.data
        options: dict[str, Any] = {"max_length": data.max_length, "too_long": data.too_long, "loss_on": data.loss_on}
        options |= {"columns": data.columns, "chat_template": data.chat_template}
        rows = prepare(data.train, tokenizer, data.format, **options)
        if data.eval is None:
            return rows, None
        if isinstance(data.eval, str):
            return rows, prepare(data.eval, tokenizer, rows.report.format, **options)
        try:
            return rows.split(data.eval, seed=self.recipe.train.seed)
        except ConfigError as error:
            raise DataError(f"data.eval={data.eval!r} cannot be held out of {len(rows)} rows: {error}") from error

    def environment(self, rows: Any, held_out: Any, processes: int) -> dict[str, Any]:
        """What `environment.json` says."""
        import torch

        from inlay.io.save import version
        from inlay.train.base import load_config

        def of(part: Any) -> dict[str, Any]:
            return {"source": part.report.source, "sha256": part.report.sha256, "rows": len(part)}

        cuda = torch.cuda.is_available() and self.recipe.train.device == "auto"
        config = load_config(self.recipe)
        return {
            "inlay": version(),
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "processes": processes,
            "seed": self.recipe.train.seed,
            "command": shlex.join(sys.argv),
            "data": {"train": of(rows), "eval": None if held_out is None else of(held_out)},
            "base": {
                "name": self.recipe.model.name,
                "commit": getattr(config, "_commit_hash", None),
                "class": (config.architectures or [None])[0],
                "model_type": config.model_type,
            },
        }

    def check_environment(self, new: dict[str, Any]) -> None:
        """Raises ResumeError if the data or the base are not those the run was begun with."""
        if self.fresh or not self.run.exists:
            return
        old = self.run.environment
        changes = []
        for part in ("train", "eval"):
            before, after = old["data"][part] or {}, new["data"][part] or {}
            if (before.get("sha256"), before.get("rows")) != (after.get("sha256"), after.get("rows")):
                changes.append(
                    f"the rows of data.{part} ({before.get('rows')} with sha256 {str(before.get('sha256'))[:12]} -> "
                    f"{after.get('rows')} with {str(after.get('sha256'))[:12]})"
                )
        if old["processes"] != new["processes"]:
            changes.append(f"the number of processes ({old['processes']} -> {new['processes']})")
        if old["base"] != new["base"]:
            changes.append(f"the base ({old['base']} -> {new['base']})")
        if changes:
            raise _differs(self.run, changes)
        versions = [n for n in ("inlay", *_PACKAGES, "device") if old.get(n) != new.get(n)]
        if versions:
            listed = ", ".join(f"{n} {old.get(n)} -> {new.get(n)}" for n in versions)
            self.say(f"WARNING: the run goes on with {listed}: its end may differ in the last bits.")

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

    def watch(self, model: Any, tokenizer: Any, when: str, step: int, format: str) -> None:
        """Answers to the prompts, unless they are there."""
        from inlay.data import known_formats
        from inlay.train.base import answers, as_asked

        prompts = self.recipe.watch.prompts
        if not prompts or not self.first or any(when in s for s in self.run.samples()):
            return
        template, complete = self.recipe.data.chat_template, known_formats()[format].complete
        asked = [as_asked(p, format, tokenizer, template) for p in prompts]
        texts = answers(model, tokenizer, asked, self.recipe.watch.max_new_tokens, complete)
        for prompt, text in zip(prompts, texts, strict=True):
            plain.append_line(self.run.folder / SAMPLES, {"step": step, "prompt": prompt, when: text})

    def adapted(self, model: Any, rows: Any, arguments: Any) -> Any:
        """The model with what is trained."""
        from inlay.hf.kbit import prepare_model_for_kbit_training
        from inlay.tasks import get_peft_model

        recipe = self.recipe
        if recipe.adapter.method == FULL:
            return model
        if recipe.model.quantize != "none":
            prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        filled = {"total_step": self.steps(len(self.items(rows)), arguments)} if recipe.adapter.planned else {}
        config = recipe.adapter.config(revision=recipe.model.revision, **filled)
        view = get_peft_model(model, config)
        if recipe.train.gradient_checkpointing:
            view.enable_input_require_grads()
        return view

    def items(self, rows: Any) -> Any:
        """Rows, or packs of rows."""
        from inlay.data import pack

        return pack(rows, self.recipe.data.max_length) if self.recipe.data.packing else rows

    def steps(self, count: int, arguments: Any) -> int:
        """The number of optimizer steps."""
        how = self.recipe.train
        batches = math.ceil(count / (arguments.train_batch_size * arguments.world_size))
        return how.max_steps or math.ceil(how.epochs * math.ceil(batches / how.accumulation))

    def trainer(self, model: Any, arguments: Any, rows: Any, held_out: Any, tokenizer: Any) -> Any:
        """Trainer, with all that watches it."""
        from transformers import EarlyStoppingCallback, PrinterCallback

        from inlay.data import Collator, FlatCollator
        from inlay.hf.callbacks import AdapterSchedule
        from inlay.train.callbacks import Finite, Interrupt, Journal, Progress, Rows
        from inlay.train.numbered import Numbered, WithRows

        collate: Any = FlatCollator() if self.recipe.data.packing else Collator.of(tokenizer)
        self.interrupt, self.progress = Interrupt(self.say), Progress(self.say)
        finite = Finite(self.run, rows.report.source)
        callbacks: list[Any] = [finite, self.interrupt, Journal(self.run), self.progress]
        if self.recipe.adapter.method != FULL:
            callbacks.append(AdapterSchedule())
        if self.recipe.train.early_stopping is not None:
            callbacks.append(EarlyStoppingCallback(self.recipe.train.early_stopping))
        trainer = Rows(
            model=model,
            args=arguments,
            data_collator=WithRows(collate),
            train_dataset=Numbered(self.items(rows)),
            eval_dataset=None if held_out is None else self.items(held_out),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.seen, finite.trainer = [], trainer
        return trainer

    def finish(self, trainer: Any, tokenizer: Any, begin: Path | None, format: str) -> Run:
        """Trains, and writes what remains."""
        try:
            with self.interrupt:
                trainer.train(resume_from_checkpoint=None if begin is None else str(begin))
        finally:
            self.progress.close()
        state, folder = trainer.state, self.run.adapter
        if self.interrupt.asked and state.global_step < state.max_steps:
            raise KeyboardInterrupt(
                f"Stopped at step {state.global_step} of {state.max_steps}, with a checkpoint. To go on:\n"
                f"    inlay train {shlex.quote(str(self.run.folder / RECIPE))}"
            )
        trainer.save_model(str(folder))
        if self.first:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of no use
            tokenizer.save_pretrained(str(folder))
            self.watch(trainer.model, tokenizer, "after", state.global_step, format)
            best = state.best_global_step if trainer.args.load_best_model_at_end else None
            result = {"format": format, "step": best or state.global_step, "steps": state.global_step}
            plain.write_json(folder / FINISHED, {**result, "eval_loss": state.best_metric, **hashes(folder)})
            self.say(f"Finished: '{folder}'.")
        return self.run


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _to_nobody(line: str) -> None: ...


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


__all__ = ["train"]
