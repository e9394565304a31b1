"""What remains of a run: a folder.

adapter/            the adapter, the tokenizer, and inlay_run.json, written last (model/ if all was trained)
checkpoints/        to go on from; each with inlay_checkpoint.json, written last
recipe.yaml         as given;  resolved.yaml: every key with its value
environment.json    versions, seed, command, data and base
metrics.jsonl       a line for every log;  samples.jsonl: prompts answered before and after
report.html         all of it as a page
tensorboard/, wandb/, trackio/, where the recipe names them
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import ConfigError, CorruptFileError, MissingFileError, StateError
from inlay.io import plain
from inlay.recipe.recipe import FULL, Recipe

if TYPE_CHECKING:
    from inlay.comparison import Comparison
    from inlay.comparison.questions import Prompt
    from inlay.evaluation import Evaluation
    from inlay.exporting import Export

RECIPE, RESOLVED, ENVIRONMENT = "recipe.yaml", "resolved.yaml", "environment.json"
METRICS, SAMPLES, CHECKPOINTS = "metrics.jsonl", "samples.jsonl", "checkpoints"
REPORT, TRACKERS = "report.html", ("tensorboard", "trackio", "wandb")
FINISHED, COMPLETE = "inlay_run.json", "inlay_checkpoint.json"
# in the order in which they can go: what is left, if a kill comes between, is a run or the beginning of one
_OURS = ("adapter", "model", CHECKPOINTS, METRICS, SAMPLES, REPORT, *TRACKERS, RECIPE, RESOLVED, ENVIRONMENT)


@dataclass(frozen=True)
class Run:
    """A run's folder. `Run.open` checks that it is one."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Raises MissingFileError if no run is there."""
        run = cls(Path(folder))
        if not run.exists:
            raise MissingFileError(f"'{folder}' is not the folder of a run: it has no {RESOLVED}.")
        return run

    @property
    def exists(self) -> bool:
        """Whether the run was begun."""
        return (self.folder / RESOLVED).is_file()

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return (self.adapter / FINISHED).is_file()

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        values = plain.read_yaml(self.folder / RESOLVED)
        return Recipe.make(values, str(self.folder / RESOLVED))

    @property
    def command(self) -> str:
        """What goes on with it: `train` and its recipe, or where flags were given beside that, the resolved one."""
        try:
            same = not Recipe.load(self.folder / RECIPE).changes(self.recipe.resolved())
        except (ConfigError, MissingFileError):
            same = False
        return f"train {shlex.quote(str(self.folder / (RECIPE if same else RESOLVED)))}"

    @property
    def environment(self) -> dict[str, Any]:
        """`environment.json`."""
        return plain.read_json(self.folder / ENVIRONMENT)

    @property
    def adapter(self) -> Path:
        """Where the result is: adapter/, or model/ if all was trained."""
        full = self.recipe.adapter.method == FULL
        return self.folder / ("model" if full else "adapter")

    @property
    def result(self) -> dict[str, Any]:
        """`inlay_run.json`: format, step, hashes of the tokenizer. Raises StateError before the run has ended."""
        if not self.finished:
            raise StateError(f"The run in '{self.folder}' has not ended: inlay {self.command}")
        return plain.read_json(self.adapter / FINISHED)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, in the order they were logged."""
        return plain.read_lines(self.folder / METRICS)

    def samples(self) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`."""
        return plain.read_lines(self.folder / SAMPLES)

    def report(self) -> Path:
        """Writes `report.html` anew, of a run in any state: see `inlay.runs.report.page.write_report`."""
        from inlay.runs.report.page import write_report

        return write_report(self)

    # ------------------------------------------------------------------ loading

    def load(self, device: Any = None, base: Any = None) -> tuple[Any, Any]:
        """(view or model, tokenizer), in evaluation mode.

        Args:
            device: where to; None leaves the model where it was loaded.
            base: the base, if it is loaded already; the view stands on its weights.

        Raises:
            CorruptFileError: the tokenizer is not the one that was trained with.
            BaseMismatchError: the base is not the one that was trained on.
        """
        tokenizer = self.load_tokenizer()
        return self.load_model(device, base), tokenizer

    def load_model(self, device: Any = None, base: Any = None) -> Any:
        """The view or model of `load`."""
        from inlay.recipe.base import load_model
        from inlay.tasks import PeftModelForCausalLM

        _ = self.result  # which is there
        if self.recipe.adapter.method == FULL:
            return placed(load_model(self.recipe, self.adapter), device)
        base = load_model(self.recipe) if base is None else base
        return placed(PeftModelForCausalLM.from_pretrained(base, str(self.adapter)), device)

    def load_base(self, device: Any = None) -> Any:
        """The base alone, in evaluation mode. Its tokenizer is the run's: `load_tokenizer()`."""
        from inlay.recipe.base import load_model

        return placed(load_model(self.recipe), device)

    def load_tokenizer(self) -> Any:
        """The tokenizer that was trained with, chat template included. Raises CorruptFileError if it was changed."""
        from inlay.recipe.base import load_tokenizer

        check_tokenizer(self.adapter, self.result)
        return load_tokenizer(self.recipe, self.adapter)

    # ------------------------------------------------------------------ using

    def asked(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids that the run's model is given for texts, or conversations: in its format, with its template."""
        from inlay.comparison.questions import questions_of

        return [q.ids for q in questions_of(prompts, self.load_tokenizer(), format=str(self.result["format"]))]

    def compare(
        self,
        prompts: Any = None,
        with_: Sequence[str | Path] = ("base",),
        references: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Comparison:
        """The base, this run, and other runs side by side: see `inlay.runs.together.compare_sources`."""
        from inlay.runs.together import compare_sources

        return compare_sources(self.folder, prompts, with_, references, **options)

    def evaluate(self, data: Any = None, metrics: Sequence[str] = (), **options: Any) -> Evaluation:
        """How good it is on rows, by default on those it held out: see `inlay.runs.together.evaluate_sources`."""
        from inlay.runs.together import evaluate_sources

        (found,) = evaluate_sources(self.folder, data, metrics, **options).columns.values()
        return found

    def export(self, to: str, out: str | Path | None = None, **options: Any) -> Export:
        """The result in a form that other programs read, by default in RUN/FORM: see `inlay.export`."""
        from inlay.runs.exports import export_source

        return export_source(self.folder, to, out, **options)

    # ------------------------------------------------------------------ checkpoints

    def checkpoints(self) -> tuple[list[Path], list[Path]]:
        """Those that are whole, the newest last, and those that are not."""
        found = [p for p in (self.folder / CHECKPOINTS).glob("checkpoint-*") if p.name.partition("-")[2].isdigit()]
        found.sort(key=step_of)
        whole = [p for p in found if is_whole(p)]
        return whole, [p for p in found if p not in whole]

    def remove(self) -> None:
        """Deletes what a run writes, and nothing else, the record of it last."""
        for result in ("adapter", "model"):
            (self.folder / result / FINISHED).unlink(missing_ok=True)
        for path in (self.folder / name for name in _OURS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was saved."""
    return int(checkpoint.name.partition("-")[2])


def seal(checkpoint: Path) -> None:
    """Says that a checkpoint is whole: the sizes of its files, on disk before this is."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != COMPLETE)
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    plain.write_json(checkpoint / COMPLETE, {str(p.relative_to(checkpoint)): p.stat().st_size for p in files})


def is_whole(checkpoint: Path) -> bool:
    """Whether it was sealed and every file has the size it had."""
    try:
        sizes = plain.read_json(checkpoint / COMPLETE)
    except (MissingFileError, CorruptFileError):
        return False
    paths = {checkpoint / name: size for name, size in sizes.items()}
    return bool(paths) and all(p.is_file() and p.stat().st_size == size for p, size in paths.items())


def hashes(folder: Path) -> dict[str, str | None]:
    """What says which tokenizer and which chat template lie in a folder."""
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():  # one that is not fast: all its files together
        others = sorted(p for p in folder.glob("*") if p.suffix in (".model", ".txt") or p.name == "vocab.json")
        content = b"".join(p.read_bytes() for p in others)
    else:
        content = tokenizer.read_bytes()
    template = folder / "chat_template.jinja"
    return {
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
        "chat_template_sha256": hashlib.sha256(template.read_bytes()).hexdigest() if template.is_file() else None,
    }


def check_tokenizer(folder: Path, saved: Mapping[str, Any]) -> None:
    """Raises CorruptFileError unless the folder's tokenizer is the one that its run, `inlay_run.json`, ended with."""
    for key, found in hashes(folder).items():
        if saved.get(key) != found:
            raise CorruptFileError(
                f"The tokenizer in '{folder}' is not the one that was trained with ({key} differs): "
                "an adapter asked with another template or other tokens answers wrongly. Restore its files."
            )


def placed(model: Any, device: Any) -> Any:
    """The model in evaluation mode, on a device. A quantised one stays where it was loaded."""
    model.eval()
    return model if device is None or getattr(model, "is_quantized", False) else model.to(device)
