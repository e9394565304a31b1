"""Multitask prompt tuning: one shared prompt, changed by a matrix of low rank for each task."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from inlay import registry
from inlay.core.host import Site
from inlay.errors import ConfigError, StateError
from inlay.prompt.config import check_size
from inlay.prompt.prompt_tuning import PromptEmbedding, PromptTuningConfig


class MultitaskPromptTuningInit(str, enum.Enum):
    """What the shared prompt and the tasks' matrices start as."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


@dataclass
class MultitaskPromptTuningConfig(PromptTuningConfig, peft_type="MULTITASK_PROMPT_TUNING"):
    r"""y = f([q_1 ... q_P, e(x)]) with q = p * (U_t V_t) elementwise for task t.   Wang et al. 2023, arXiv 2303.02861.

    p: (P, d) shared   U: (tasks, P, k)   V: (tasks, k, d)   k: `num_ranks`. A call names its rows' tasks: `task_ids=`.

    Args:
        prompt_tuning_init: "RANDOM" or "TEXT" for p, with U and V from N(0, 0.02^2). From the adapter that
            `prompt_tuning_init_state_dict_path` names: "ONLY_SOURCE_SHARED" takes p; "EXACT_SOURCE_TASK" also U and V
            of `prompt_tuning_init_task`; "AVERAGE_SOURCE_TASKS" their mean over the tasks.
        prompt_tuning_init_state_dict_path: an `adapter_model.safetensors` of a multitask prompt.
        prompt_tuning_init_task: which of its tasks.
        num_ranks: k.
        num_tasks: how many tasks.

    The prompt goes before the encoder's input only, as in the paper: files with `num_transformer_submodules` 2, whose
    decoder is prompted too, are refused.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    prompt_tuning_init: str = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None
    prompt_tuning_init_task: int | None = 0
    num_ranks: int = 1
    num_tasks: int = 1

    inits: ClassVar[type[enum.Enum]] = MultitaskPromptTuningInit

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("num_ranks", self.num_ranks)
        check_size("num_tasks", self.num_tasks)
        sourced = self.prompt_tuning_init not in ("RANDOM", "TEXT")
        path = self.prompt_tuning_init_state_dict_path
        if sourced and not (isinstance(path, str) and path.endswith(".safetensors")):
            raise ConfigError.of(
                "prompt_tuning_init_state_dict_path",
                path,
                f"a .safetensors file, with prompt_tuning_init={self.prompt_tuning_init.value!r}",  # type: ignore[attr-defined]
            )
        if self.prompt_tuning_init in ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK") and self.num_tasks != 1:
            raise ConfigError.of("num_tasks", self.num_tasks, "1: a source's task is the start of one task")
        if self.num_transformer_submodules == 2:
            raise ConfigError.of(
                "num_transformer_submodules", 2, "1 or None", "A multitask prompt goes before the encoder's input only."
            )

    def measure(self, model: nn.Module) -> None:
        self.num_transformer_submodules = 1
        super().measure(model)


@registry.adapter(MultitaskPromptTuningConfig, "prompt")
class MultitaskPromptEmbedding(PromptEmbedding):
    r"""y = f([q_1 ... q_P, e(x)]; W) with q = p * (U_t V_t).   p: (P, d)   U: (tasks, P, k)   V: (tasks, k, d)"""

    def __init__(self, config: MultitaskPromptTuningConfig, site: Site, keeps: bool):
        super().__init__(config, site, keeps)
        self.cols = self.parameter(site, config.num_tasks, config.rows, config.num_ranks)
        self.rows = self.parameter(site, config.num_tasks, config.num_ranks, config.token_dim)  # type: ignore[arg-type]

    def reset(self, host: Any) -> None:
        config: Any = self.config
        nn.init.normal_(self.cols, std=0.02)
        nn.init.normal_(self.rows, std=0.02)
        if config.prompt_tuning_init in ("RANDOM", "TEXT"):
            super().reset(host)
            return
        from inlay.io.tensors import read_tensors

        source = read_tensors(config.prompt_tuning_init_state_dict_path)
        _take(self.embedding, source, "prompt_embeddings")
        if config.prompt_tuning_init != "ONLY_SOURCE_SHARED":
            for own, name in ((self.cols, "prefix_task_cols"), (self.rows, "prefix_task_rows")):
                tasks = source.get(name)
                if tasks is not None and config.prompt_tuning_init == "EXACT_SOURCE_TASK":
                    task = config.prompt_tuning_init_task
                    if not isinstance(task, int) or not 0 <= task < len(tasks):
                        raise ConfigError.of("prompt_tuning_init_task", task, f"a task from 0 to {len(tasks) - 1}")
                    tasks = tasks[task : task + 1]
                _take(own, {} if tasks is None else {name: tasks.mean(0, keepdim=True)}, name)

    def prompt(self, rows: int, host: Any) -> Tensor:
        tasks = host.active.facts.task_ids
        if tasks is None:
            raise StateError("A multitask prompt needs to know each row's task: pass task_ids=[...] to the model.")
        tasks = tasks.to(self.cols.device)
        if rows % len(tasks):
            raise StateError(f"task_ids has {len(tasks)} tasks for a batch of {rows} rows: give one per row.")
        changed: Tensor = self.embedding * (self.cols[tasks] @ self.rows[tasks])
        return changed.repeat_interleave(rows // len(tasks), dim=0)

    def shared_tensors(self) -> dict[str, Tensor]:
        return {**super().shared_tensors(), "prefix_task_cols": self.cols, "prefix_task_rows": self.rows}


def _take(own: Tensor, source: dict[str, Tensor], name: str) -> None:
    """Sets `own` from `source[name]`. Raises ConfigError if that is not there or of another shape."""
    value = source.get(name)
    if value is None or value.shape != own.shape:
        got = None if value is None else tuple(value.shape)
        raise ConfigError.of(
            "prompt_tuning_init_state_dict_path", f"a file with {name} {got}", f"one of shape {tuple(own.shape)}"
        )
    own.copy_(value)
