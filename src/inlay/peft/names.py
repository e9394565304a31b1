"""What `peft` and its modules offer here, and what they do not: one table, read by `inlay.peft.modules`."""

from __future__ import annotations

import inlay

VERSION = "0.21.2"  # of peft, whose names these are

_PUBLIC = {name: f"inlay:{name}" for name in inlay.__all__}


def _from(home: str, *names: str) -> dict[str, str]:
    """name -> where it is."""
    return {name: f"{home}:{name}" for name in names}


# module -> name in it -> "module:name" of Inlay
MODULES: dict[str, dict[str, str]] = {
    "peft": _PUBLIC,
    "peft.config": {name: _PUBLIC[name] for name in ("PeftConfig", "PromptLearningConfig")},
    "peft.peft_model": {name: home for name, home in _PUBLIC.items() if name.startswith("PeftModel")},
    "peft.tuners": {name: home for name, home in _PUBLIC.items() if name.endswith("Config")},
    "peft.tuners.lora": {name: _PUBLIC[name] for name in ("LoraConfig",)},
    "peft.utils": {
        name: _PUBLIC[name]
        for name in ("PeftType", "TaskType", "get_peft_model_state_dict", "set_peft_model_state_dict")
    },
    "peft.utils.save_and_load": {
        name: _PUBLIC[name] for name in ("get_peft_model_state_dict", "set_peft_model_state_dict")
    },
}

# what peft has besides
_ABSENT = {"XLoraConfig", "XLoraModel"}


def lacking(name: str) -> str | None:
    """A sentence for a name, with its module, that peft has and Inlay has not; None for any other."""
    if name.rpartition(".")[2] not in _ABSENT:
        return None
    return (
        f"{name} is not offered by Inlay, which stands in for peft {VERSION} here. Run the script with peft itself, or "
        "without this name."
    )
