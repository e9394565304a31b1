"""`get_peft_model`, and one view class per task: which head is trained along with the adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from inlay.config import PeftConfig, TaskType
from inlay.errors import ConfigError
from inlay.model import PeftModel


class PeftModelForCausalLM(PeftModel):
    """A view of a causal language model."""


class PeftModelForSeq2SeqLM(PeftModel):
    """A view of an encoder-decoder language model."""


class PeftModelForSequenceClassification(PeftModel):
    """A view of a sequence classifier. Its head is trained and saved along."""

    _task_heads = ("classifier", "score", "classification_head")


class PeftModelForTokenClassification(PeftModel):
    """A view of a token classifier. Its head is trained and saved along."""

    _task_heads = ("classifier", "score")


class PeftModelForQuestionAnswering(PeftModel):
    """A view of a span-extraction model. Its head is trained and saved along."""

    _task_heads = ("qa_outputs",)


class PeftModelForFeatureExtraction(PeftModel):
    """A view of a model used for its hidden states."""


VIEW_CLASSES: dict[str | None, type[PeftModel]] = {
    None: PeftModel,
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.SEQ_CLS: PeftModelForSequenceClassification,
    TaskType.TOKEN_CLS: PeftModelForTokenClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> Any:
    """A view of `model` with a new adapter; `model` itself keeps answering as it did.

    Args:
        model: the base, any `nn.Module`; not changed, but its weights are frozen (the view shares them).
        peft_config: the method and where it goes.
        adapter_name: 1 to 64 letters, digits, `_` or `-`.
        mixed: accepted for compatibility; any view takes adapters of any methods.
        autocast_adapter_dtype: keep adapters in float32 when the base is 16-bit.
        revision: the base's revision, noted in the config.
        low_cpu_mem_usage: accepted for compatibility.

    Returns:
        A `PeftModelFor...` that is also an instance of `type(model)`.

    Raises:
        TargetError, ConfigError: the config does not fit the model. Nothing has changed then.

    Example:
        >>> view = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16))
        >>> view.print_trainable_parameters()
    """
    if not isinstance(peft_config, PeftConfig):
        raise ConfigError.of("peft_config", type(peft_config).__name__, "a config such as LoraConfig(...)")
    if revision is not None:
        peft_config = peft_config.replaced(revision=revision)
    cls = VIEW_CLASSES[peft_config.task_type]
    return cls(model, peft_config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
