"""vLLM's rules, one by one, on folders that Inlay and peft write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay import IA3Config, get_peft_model
from inlay.errors import MissingFileError
from inlay.exporting import rejected_by_vllm
from inlay.io.folder import MANIFEST_NAME
from tests.comparison.lm import TARGETS, base, lora, view


def saved(folder: Path, config: Any) -> list[str]:
    get_peft_model(base(), config).save_pretrained(str(folder))
    return rejected_by_vllm(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"target_modules": ["q_proj", "embed_tokens"], "save_embedding_layers": False},
    ],
)
def test_what_is_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    embeddings = changes.pop("save_embedding_layers", "auto")
    get_peft_model(base(), lora(**changes)).save_pretrained(str(tmp_path), save_embedding_layers=embeddings)
    assert rejected_by_vllm(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora=True: DoRA is not read"),
        ({"modules_to_save": ["norm"]}, "modules_to_save=['norm']: of modules trained in full only"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens=[3]: Activated LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': of inits named by a text only"),
        ({"init_lora_weights": "olora"}, "as_plain_lora"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices=[1]: trained rows"),
    ],
)
def test_what_is_not(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = saved(tmp_path, lora(**changes))
    assert any(reason in line for line in found), found


def test_every_reason_is_given(tmp_path: Path) -> None:
    found = saved(tmp_path, lora(use_dora=True, modules_to_save=["norm"]))
    fields = [line.split("=")[0] for line in found]
    assert fields[:2] == ["use_dora", "modules_to_save"]
    assert "lora_magnitude_vector" in found[2] or "norm" in found[2]


def test_other_methods(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])
    (line,) = saved(tmp_path, config)
    assert line.startswith("peft_type is 'IA3': only LORA is read") and "save_as_lora" in line


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
def test_fields_that_must_be_there(tmp_path: Path, field: str) -> None:
    view().save_pretrained(str(tmp_path))
    (tmp_path / MANIFEST_NAME).unlink()
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    del config[field]
    path.write_text(json.dumps(config))
    assert rejected_by_vllm(tmp_path) == [f"{field} is missing"]


def test_embeddings_saved_along(tmp_path: Path) -> None:
    get_peft_model(base(), lora(target_modules=["embed_tokens"])).save_pretrained(str(tmp_path))
    (line,) = rejected_by_vllm(tmp_path)
    assert line.startswith("the tensor 'base_model.model.model.embed_tokens.base_layer.weight'")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
def test_pefts_own_folder(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="writes the folder")
    config = peft.LoraConfig(r=4, target_modules=TARGETS)
    peft.get_peft_model(base(), config).save_pretrained(str(tmp_path))
    assert rejected_by_vllm(tmp_path) == []


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        rejected_by_vllm(tmp_path)
