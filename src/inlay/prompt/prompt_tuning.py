"""Prompt tuning: the embeddings of virtual tokens are trained, and nothing else."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay import registry
from inlay.checks import check_choice
from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.prompt.config import PromptLearningConfig
from inlay.prompt.tokens import VirtualTokens


class PromptTuningInit(str, enum.Enum):
    """What the virtual tokens start as."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass
class PromptTuningConfig(PromptLearningConfig, peft_type="PROMPT_TUNING"):
    r"""y = f([p_1 ... p_P, e(x)]) with p: (P, d) trained.   Lester et al. 2021, arXiv 2104.08691.

    Args:
        prompt_tuning_init: "RANDOM": N(0, 1), as in peft (the paper: uniform in [-0.5, 0.5]). "SAMPLE_VOCAB":
            embeddings of random tokens. "TEXT": embeddings of a text's tokens, repeated or cut to P.
        prompt_tuning_init_text: the text.
        tokenizer_name_or_path: the tokenizer for the text.
        tokenizer_kwargs: arguments of `AutoTokenizer.from_pretrained`; `trust_remote_code` is not among them.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    prompt_tuning_init: str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    inits: ClassVar[type[enum.Enum]] = PromptTuningInit

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.prompt_tuning_init
        check_choice("prompt_tuning_init", getattr(kind, "value", kind), [i.value for i in self.inits])
        self.prompt_tuning_init = self.inits(kind)  # type: ignore[assignment]
        text, kwargs = kind == "TEXT", self.tokenizer_kwargs
        for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
            value = getattr(self, name)
            if text and not (isinstance(value, str) and value):
                raise ConfigError.of(name, value, "a text, with prompt_tuning_init='TEXT'")
        if kwargs is not None and (not text or not isinstance(kwargs, dict) or "trust_remote_code" in kwargs):
            raise ConfigError.of(
                "tokenizer_kwargs", kwargs, "a dict without trust_remote_code, with prompt_tuning_init='TEXT'"
            )


@registry.adapter(PromptTuningConfig, "prompt")
class PromptEmbedding(VirtualTokens):
    r"""y = f([p_1 ... p_P, e(x)]; W).   p: (P, d), the first P rows of `embedding`: (P * submodules, d)"""

    def __init__(self, config: PromptTuningConfig, site: Site, keeps: bool):
        super().__init__(config, site, keeps)
        self.config = config
        self.embedding = self.parameter(site, config.rows, config.token_dim)  # type: ignore[arg-type]

    def reset(self, host: Any) -> None:
        kind, rows, table = self.config.prompt_tuning_init, self.embedding.shape[0], host.get_input_embeddings()
        nn.init.normal_(self.embedding)
        if kind == "TEXT":
            ids = _token_ids(host, self.config)
            ids = (ids * math.ceil(rows / len(ids)))[:rows]
        elif kind == "SAMPLE_VOCAB":
            ids = torch.randint(0, table.num_embeddings, (rows,)).tolist()
        else:
            return
        self.embedding.copy_(table(torch.tensor(ids, device=table.weight.device)))

    def prompt(self, rows: int, host: Any) -> Tensor:
        return self.embedding[: self.count].unsqueeze(0)

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.embedding}


def _token_ids(host: Any, config: PromptTuningConfig) -> list[int]:
    glue: Any = registry.glue_for(host)
    ids: list[int] = glue.token_ids(
        config.tokenizer_name_or_path, config.prompt_tuning_init_text, **(config.tokenizer_kwargs or {})
    )
    if not ids:
        raise ConfigError.of("prompt_tuning_init_text", config.prompt_tuning_init_text, "a text of at least one token")
    return ids
