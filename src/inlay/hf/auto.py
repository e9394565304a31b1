"""`AutoPeftModelFor...`: base and adapter from the adapter's folder or Hub id alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from inlay.config import PeftConfig, TaskType
from inlay.errors import ConfigError, FileError, MissingFileError
from inlay.io.hub import local_folder
from inlay.io.load import load_config
from inlay.model import PeftModel

_HUB = ("subfolder", "revision", "cache_dir", "token")
_LOAD = ("strict", "check_base", "allow_pickle", "ignore_mismatched_sizes", "key_mapping", "autocast_adapter_dtype")


class AutoPeftModel:
    """A view of the base that an adapter names, with that adapter. The base's class is the one it was trained on."""

    task: ClassVar[TaskType | None] = None
    auto_class: ClassVar[str | None] = None  # of transformers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{type(self).__name__} is made with {type(self).__name__}.from_pretrained(folder_or_hub_id).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads the base with transformers, then the adapter onto it.

        If the adapter's folder has a tokenizer with more tokens than the base has embedding rows, the base is resized.

        Args:
            trust_remote_code: passed to transformers; never read from a file.
            kwargs: arguments of `PeftModel.from_pretrained` go there, everything else to the base's `from_pretrained`.

        Raises:
            ConfigError: the config names no base, or is for another task.
        """
        hub = {k: kwargs.pop(k) for k in _HUB if k in kwargs}
        if revision is not None:
            hub["revision"] = revision
        load = {k: kwargs.pop(k) for k in _LOAD if k in kwargs}
        config = config or load_config(pretrained_model_name_or_path, **hub)
        if config.base_model_name_or_path is None:
            raise ConfigError.of(
                "base_model_name_or_path", None, "the base's name", "Load it and use PeftModel.from_pretrained."
            )
        if cls.task is not None and config.task_type not in (None, cls.task):
            raise ConfigError.of("task_type", config.task_type, f"{cls.task.value} for {cls.__name__}")
        base = cls._base_class(config).from_pretrained(
            config.base_model_name_or_path, revision=config.revision, trust_remote_code=trust_remote_code, **kwargs
        )
        _resize(base, local_folder(pretrained_model_name_or_path, **hub), trust_remote_code)
        return PeftModel.from_pretrained(
            base, pretrained_model_name_or_path, adapter_name, is_trainable, config, **hub, **load
        )

    @classmethod
    def _base_class(cls, config: PeftConfig) -> Any:
        transformers = importlib.import_module("transformers")
        if cls.auto_class is not None:
            return getattr(transformers, cls.auto_class)
        if config.task_type is not None:
            return getattr(transformers, _BY_TASK[TaskType(config.task_type)])
        mapping = config.auto_mapping or {}
        name, library = mapping.get("base_model_class", ""), mapping.get("parent_library", "")
        found = getattr(transformers, name, None) if library.partition(".")[0] == "transformers" else None
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            raise ConfigError.of(
                "auto_mapping",
                mapping,
                "a model class of transformers",
                "Load the base and use PeftModel.from_pretrained.",
            )
        return found


def load_view(folder: Path, base: Any = None, **kwargs: Any) -> Any:
    """A view with the adapter in `folder`, on `base`: a model, a model's name, or None for the one that it names.

    Raises as `PeftModel.from_pretrained`, and MissingFileError if transformers finds no such base.
    """
    if base is not None and not isinstance(base, (str, Path)):
        return PeftModel.from_pretrained(base, str(folder), **kwargs)
    config = load_config(folder)
    if base is not None:
        config = config.replaced(base_model_name_or_path=str(base))
    try:
        return AutoPeftModel.from_pretrained(str(folder), config=config, dtype="auto", **kwargs)
    except FileError:
        raise
    except OSError as error:
        raise MissingFileError(
            f"The base {config.base_model_name_or_path!r} cannot be loaded: {str(error).splitlines()[0]} "
            "Name it by its folder, or its id on the Hub, as base."
        ) from error


def _resize(base: Any, folder: Path, trust_remote_code: bool) -> None:
    if not (folder / "tokenizer_config.json").exists() or base.get_input_embeddings() is None:
        return
    from transformers import AutoTokenizer

    count = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code))
    if count > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(count)


class AutoPeftModelForCausalLM(AutoPeftModel):
    """For causal language models."""

    task, auto_class = TaskType.CAUSAL_LM, "AutoModelForCausalLM"


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """For encoder-decoder language models."""

    task, auto_class = TaskType.SEQ_2_SEQ_LM, "AutoModelForSeq2SeqLM"


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """For sequence classifiers. Pass `num_labels` if the base's own config does not have the task's."""

    task, auto_class = TaskType.SEQ_CLS, "AutoModelForSequenceClassification"


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """For token classifiers. Pass `num_labels` if the base's own config does not have the task's."""

    task, auto_class = TaskType.TOKEN_CLS, "AutoModelForTokenClassification"


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """For span-extraction models."""

    task, auto_class = TaskType.QUESTION_ANS, "AutoModelForQuestionAnswering"


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """For models used for their hidden states."""

    task, auto_class = TaskType.FEATURE_EXTRACTION, "AutoModel"


_BY_TASK = {
    c.task: c.auto_class
    for c in (
        AutoPeftModelForCausalLM,
        AutoPeftModelForSeq2SeqLM,
        AutoPeftModelForSequenceClassification,
        AutoPeftModelForTokenClassification,
        AutoPeftModelForQuestionAnswering,
        AutoPeftModelForFeatureExtraction,
    )
}
