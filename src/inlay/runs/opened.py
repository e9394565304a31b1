"""What a SOURCE on a command line is: a run, an adapter, or a model; and how it is opened.

A SOURCE is
    the folder of a run (`inlay.runs.run`), or the adapter/ or model/ in it
    the folder of an adapter: its base is the one that it names, its tokenizer the one in it or else the base's
    the folder, or the name on the Hub, of a causal language model
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.comparison.columns import title
from inlay.comparison.questions import PLAIN
from inlay.errors import ConfigError, InlayError, MissingFileError, StateError, nearest
from inlay.io import plain
from inlay.io.folder import CONFIG_NAME, adapter_in
from inlay.recipe.recipe import FULL
from inlay.runs.run import FINISHED, RESOLVED, Run, check_tokenizer, placed

_KINDS = f"the folder of a run ({RESOLVED}), of an adapter ({CONFIG_NAME}) or of a model (config.json)"


@dataclass(frozen=True)
class Source:
    """A SOURCE that was found, and nothing loaded.

    Attributes:
        text: as it was given.
        name: short, to show.
        run: the run, if it is one.
        adapter: the adapter's folder, or None for a whole model.
        format: of the data it was trained on; None if that is not known.
    """

    text: str
    name: str
    run: Run | None
    adapter: Path | None
    format: str | None

    @property
    def place(self) -> Path:
        """Where it is; two that are the same are there both."""
        return (self.adapter or (self.run.adapter if self.run is not None else Path(self.text))).resolve()

    def open(self, *, base: Any = None, device: Any = None) -> Opened:
        """Loads it: see `open_source`."""
        base = str(base) if isinstance(base, Path) else base
        tokenizer = self.load_tokenizer(base)
        return Opened(self.load_model(base, device), tokenizer, self.format or PLAIN, self.name, self.run)

    def load_tokenizer(self, base: Any = None) -> Any:
        """The tokenizer it was trained with, chat template included. Raises CorruptFileError if it was changed."""
        from inlay.hf.tokenizers import TOKENIZER_CONFIG, load_tokenizer

        if self.run is not None:
            return self.run.load_tokenizer()
        if self.adapter is None:
            return load_tokenizer(self.text)
        if (self.adapter / FINISHED).is_file():
            check_tokenizer(self.adapter, plain.read_json(self.adapter / FINISHED))
        if (self.adapter / TOKENIZER_CONFIG).is_file():
            return load_tokenizer(self.adapter)
        return load_tokenizer(getattr(base, "name_or_path", None) or self._config(base).base_model_name_or_path)

    def load_model(self, base: Any = None, device: Any = None) -> Any:
        """A view of the base, or the model, in evaluation mode; on a GPU if there is one and `device` is None."""
        from transformers import AutoModelForCausalLM

        from inlay.hf.auto import AutoPeftModelForCausalLM
        from inlay.tasks import PeftModelForCausalLM

        device = self.device if device is None else device
        if self.adapter is None and base is not None:
            raise ConfigError.of("base", str(base)[:60], f"None: '{self.text}' is a whole model")
        if self.run is not None and base is None:
            return self.run.load_model(device)
        if self.adapter is None:
            return placed(_from_pretrained(AutoModelForCausalLM, self.text), device)
        if base is None or isinstance(base, str):
            config = self._config(base)
            return placed(_from_pretrained(AutoPeftModelForCausalLM, str(self.adapter), config=config), device)
        return PeftModelForCausalLM.from_pretrained(base, str(self.adapter)).eval()

    def load_base(self, device: Any = None) -> Any:
        """The base alone; of a model that is no run, the model."""
        if self.run is not None:
            return self.run.load_base(self.device if device is None else device)
        model = self.load_model(device=device)
        return model if self.adapter is None else model.unload()

    @property
    def device(self) -> str:
        """A GPU if there is one, and the run was not kept off it."""
        import torch

        kept_off = self.run is not None and self.run.recipe.train.device == "cpu"
        return "cuda" if torch.cuda.is_available() and not kept_off else "cpu"

    def _config(self, base: str | None) -> Any:
        """The adapter's, with the base's name."""
        from inlay.io.load import load_config

        assert self.adapter is not None
        config = load_config(self.adapter)
        config = config if base is None else config.replaced(base_model_name_or_path=base)
        if config.base_model_name_or_path is None:
            raise ConfigError.of("base", None, f"the base's name, which '{self.adapter}' does not say")
        return config


@dataclass(frozen=True)
class Opened:
    """A SOURCE, loaded.

    Attributes:
        model: a view (base and adapter), or a model, in evaluation mode.
        tokenizer: the one it was trained with, chat template included.
        format: of the data it was trained on; "plain" if that is not known.
        name: short, to show.
        run: the run, if it is one.
    """

    model: Any
    tokenizer: Any
    format: str
    name: str
    run: Run | None

    def base_model(self) -> Any:
        """The base alone: on the view's own weights; for a model trained in full, loaded beside it; else the model."""
        from inlay.model import PeftModel

        if isinstance(self.model, PeftModel):
            return self.model.unload()
        if self.run is not None:
            return self.run.load_base(self.model.device)
        return self.model


def open_source(text: str | Path, *, base: Any = None, device: Any = None) -> Opened:
    """Loads a SOURCE.

    Args:
        text: a run's folder, an adapter's folder, or a model's folder or name.
        base: a loaded model, or the name of one, in place of the base that an adapter names.
        device: where to; None for a GPU if there is one.

    Raises:
        MissingFileError: it is none of these; the message has the nearest run.
        StateError: the run has not ended.
        CorruptFileError: the tokenizer is not the one that was trained with, or a file is damaged.
        BaseMismatchError: the adapter was trained on another base.
    """
    return find_source(text).open(base=base, device=device)


def find_source(text: str | Path) -> Source:
    """What a SOURCE is, without loading it. Raises as `open_source`, but for what only loading shows."""
    path = Path(text)
    run = _run_of(path)
    if run is not None:
        trained_on = str(run.result["format"])
        full = run.recipe.adapter.method == FULL
        return Source(str(text), run.folder.resolve().name, run, None if full else run.adapter, trained_on)
    if (adapter := adapter_in(path)) is not None:
        made = adapter / FINISHED
        format = plain.read_json(made).get("format") if made.is_file() else None
        return Source(str(text), title(path), None, adapter, format)
    if path.is_dir() and not (path / "config.json").is_file():
        raise MissingFileError(f"'{text}' holds none of these: {_KINDS}.{_inside(path)}")
    if not path.is_dir():
        if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(text)):
            raise _missing(text)
        _check_hub(str(text))
    return Source(str(text), path.resolve().name if path.is_dir() else path.name, None, None, None)


def adapter_folder(text: str | Path) -> Path:
    """The adapter's folder of a run or of an adapter.

    Raises:
        MissingFileError: it is neither; the message has the nearest run.
        StateError: the run has not ended, or has no adapter because all weights were trained.
    """
    path = Path(text)
    run = _run_of(path)
    if run is not None:
        _ = run.result  # which has ended
        if run.recipe.adapter.method == FULL:
            raise StateError(f"The run in '{run.folder}' has no adapter: all weights were trained, and are in model/.")
        return run.adapter
    if (found := adapter_in(path)) is not None:
        return found
    allowed = f"the folder of a run ({RESOLVED}) or of an adapter ({CONFIG_NAME})"
    if path.is_dir():
        raise MissingFileError(f"'{text}' holds no adapter: expected {allowed}.{_inside(path)}")
    raise MissingFileError(f"There is no folder '{text}': expected {allowed}.{_did_you_mean(path)}")


def _run_of(path: Path) -> Run | None:
    """The run whose folder, or whose result, this is."""
    run = Run(path)
    if run.exists:
        return run
    above = Run(path.parent)
    return above if path.is_dir() and above.exists and above.adapter.resolve() == path.resolve() else None


def _missing(text: str | Path) -> MissingFileError:
    return MissingFileError(f"There is no '{text}': expected {_KINDS}, or a model's name.{_did_you_mean(Path(text))}")


def _did_you_mean(path: Path) -> str:
    """Runs beside it, and in runs/, that are called alike."""
    runs = {run.name: run for place in (Path("runs"), path.parent) for run in _runs_in(place)}
    close = [f"'{runs[name]}'" for name in nearest(path.name, runs)]
    if close or not runs:
        return f" Did you mean {' or '.join(close)}?" if close else ""
    return f" The runs here are {', '.join(repr(str(run)) for run in list(runs.values())[:10])}."


def _inside(path: Path) -> str:
    runs = [f"'{run}'" for run in _runs_in(path)]
    return f" The runs in it are {', '.join(runs[:10])}: name one." if runs else ""


def _runs_in(place: Path) -> list[Path]:
    return sorted(file.parent for file in place.glob(f"*/{RESOLVED}")) if place.is_dir() else []


def _check_hub(name: str) -> None:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _missing(name) from error


def _from_pretrained(cls: Any, name: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(name, dtype="auto", **options)
    except InlayError:  # which says what is wrong
        raise
    except (OSError, ValueError) as error:
        raise MissingFileError(f"'{name}' cannot be loaded: {str(error).splitlines()[0]}") from error
