"""Our LoRA files against the rules by which vLLM reads them (0.33, `vllm/lora/peft_helper.py`), which is not installed.

`Reader` is a second reading of those rules, from their description, and knows nothing of Inlay. It and Inlay's own,
`rejected_by_vllm`, agree on every folder here.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="needs transformers")

from inlay import LoraConfig, get_peft_model
from inlay.exporting import rejected_by_vllm
from tests.hf.tiny import base

PREFIX = "base_model.model."
INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
REFUSED = ("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens")


class Refused(Exception):
    """The reader does not take this adapter."""


class Reader:
    """What vLLM makes of an adapter's folder: for each module A, B and the scale, or `Refused`."""

    def __init__(self, folder: Path):
        self.config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
        for name in ("r", "lora_alpha", "target_modules"):
            if self.config.get(name) is None:
                raise Refused(f"{name} is missing")
        for name in REFUSED:
            if self.config.get(name):
                raise Refused(name)
        if self.config.get("bias", "none") != "none":
            raise Refused("bias")
        heads = set(self.config.get("modules_to_save") or ()) - {"classifier", "score"}
        if heads:
            raise Refused(f"modules_to_save: {sorted(heads)}")
        init = self.config.get("init_lora_weights", True)
        if isinstance(init, str) and init not in INITS:
            raise Refused(f"init_lora_weights: {init}")
        self.modules: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / "adapter_model.safetensors").items():
            path, part = self.parse(key)
            self.modules.setdefault(path, {})[part] = tensor

    @staticmethod
    def parse(key: str) -> tuple[str, str]:
        """(module's path, "A" or "B") of a key."""
        path = key.removeprefix(PREFIX)
        if path == key:
            raise Refused(f"{key} has another prefix")
        for end, part in (
            ("lora_A.weight", "A"),
            ("lora_B.weight", "B"),
            ("lora_embedding_A", "A"),
            ("lora_embedding_B", "B"),
        ):
            if path.endswith("." + end):
                return path.removesuffix("." + end), part
        raise Refused(f"{key} is no part of a LoRA")

    def by_pattern(self, patterns: dict[str, Any], path: str, default: Any) -> Any:
        """The value of the first pattern that is the end of a path."""
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)

    def scale(self, path: str) -> float:
        """What B A is multiplied by."""
        rank = self.by_pattern(self.config.get("rank_pattern") or {}, path, self.config["r"])
        alpha = self.by_pattern(self.config.get("alpha_pattern") or {}, path, self.config["lora_alpha"])
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def weights(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Path -> the weight of every layer that the adapter changes, as vLLM computes it."""
        found = {}
        for path, parts in self.modules.items():
            w, a, b = model.get_submodule(path).weight, parts["A"], parts["B"]
            delta = self.scale(path) * (b @ a)
            found[path] = w + (delta.T if isinstance(model.get_submodule(path), torch.nn.Embedding) else delta)
            assert any(re.match(rf"(.*\.)?({t})$", path) for t in self.targets()), path
        return found

    def targets(self) -> list[str]:
        """`target_modules` as a list of endings."""
        given = self.config["target_modules"]
        return [given] if isinstance(given, str) else given


TARGETS = ["q_proj", "v_proj", "down_proj"]
READ: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*\.(q_proj|v_proj)"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 5}, "alpha_pattern": {"v_proj": 9}},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "default targets": {"target_modules": None},
}
NOT_READ: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights"),
    "a head": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
}


def saved(folder: Path, **options: Any) -> tuple[Any, Any]:
    """A base, and a view of it that was trained (here: shifted) and saved."""
    model = base("llama")
    view = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": TARGETS, **options}))
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (p for p in view.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=made) * 0.2)
    view.save_pretrained(folder, save_embedding_layers=False)
    return model, view


@pytest.mark.parametrize("options", READ.values(), ids=READ.keys())
def test_what_the_reader_computes_is_what_inlay_merges(tmp_path: Path, options: dict[str, Any]) -> None:
    model, view = saved(tmp_path, **options)
    read = Reader(tmp_path).weights(model)
    assert rejected_by_vllm(tmp_path) == []
    merged = view.merge_and_unload()
    changed = {
        path
        for path, module in merged.named_modules()
        if (own := getattr(module, "weight", None)) is not None
        and own.dim() == 2
        and not torch.equal(own, model.get_submodule(path).weight)
    }
    assert read.keys() == changed and changed
    for path, weight in read.items():
        torch.testing.assert_close(weight, merged.get_submodule(path).weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("options", "why"), NOT_READ.values(), ids=NOT_READ.keys())
def test_what_the_reader_refuses_says_so_in_its_config(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    """Such an adapter is refused by vLLM, instead of being read as a plain LoRA that it is not."""
    saved(tmp_path, **options)
    with pytest.raises(Refused, match=why):
        Reader(tmp_path)
    assert any(reason.startswith(f"{why}=") for reason in rejected_by_vllm(tmp_path))


def test_pissa_as_plain_lora_is_read(tmp_path: Path) -> None:
    from inlay import as_plain_lora

    model, view = saved(tmp_path / "pissa", init_lora_weights="pissa")
    as_plain_lora(view, "default", "plain")
    view.save_pretrained(tmp_path, selected_adapters=["plain"])
    merged = view.merge_and_unload()
    for path, weight in Reader(tmp_path / "plain").weights(model).items():
        torch.testing.assert_close(weight, merged.get_submodule(path).weight, rtol=0, atol=1e-5)
    assert rejected_by_vllm(tmp_path / "plain") == []
