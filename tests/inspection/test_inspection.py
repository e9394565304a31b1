"""Inspecting adapters: norms against dense ones in float64 for every method, and each kind of damage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inlay import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model, inspect_adapter
from inlay.core.index import index_of
from inlay.core.stored import StoredProduct
from inlay.errors import MissingFileError
from inlay.inspection import Inspection, adapters_in
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME
from tests.comparison.lm import base, lora, view
from tests.contract.cases import Make, canonical, methods, view_of
from tests.tiny import close, scramble


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(str(folder))
    return folder


def changed(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Inspection:
    """What is found once the tensors were changed, by one who leaves no manifest."""
    (folder / MANIFEST_NAME).unlink()
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    return inspect_adapter(folder)


def with_config(folder: Path, **fields: Any) -> Inspection:
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    data = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**data, **fields}))
    return inspect_adapter(folder)


@pytest.mark.parametrize("make", methods())
def test_norms_of_every_method(tmp_path: Path, make: Make) -> None:
    made = scramble(view_of(make), 0.3)
    found = inspect_adapter(saved(tmp_path, made))
    assert found.problems == [] and found.verified
    index = index_of(made)
    placed, (config,) = index.placed["default"], index.configs.values()
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    assert found.parameters == sum(t.numel() for t in tensors.values()) and found.tensors == len(tensors)
    assert found.norms.keys() <= placed.keys() and found.norms
    for path, norm in found.norms.items():
        if found.norms_of == "tensors":
            key = f"base_model.model.{path}."
            wanted = math.sqrt(sum(float(t.double().square().sum()) for k, t in tensors.items() if k.startswith(key)))
        elif found.norms_of == "change":
            w = canonical(index.hosts[path]).double()
            wanted = float((placed[path].weight(w) - w).detach().norm())
        else:
            own: Any = placed[path]
            a, b = own.occupied()
            rank = len(a) // own.groups
            dense = b.double().reshape(own.groups, -1, rank) @ a.double().reshape(own.groups, rank, -1)
            wanted = config.scale(path) * float(dense.detach().norm())  # type: ignore[attr-defined]
        assert norm == pytest.approx(wanted, rel=1e-5), path


def test_which_methods_tell_their_change(tmp_path: Path) -> None:
    of = {}
    for case in methods():
        made = scramble(view_of(case.values[0]), 0.3)  # type: ignore[arg-type]
        of[str(case.id)] = inspect_adapter(saved(tmp_path / str(case.id), made)).norms_of
    assert of["LoraConfig-plain"] == of["LoraConfig-patterns"] == of["AdaLoraConfig-plain"] == "change"
    assert of["LoraConfig-dora"] == of["LoraConfig-pissa"] == of["LoraConfig-dora-pissa"] == "product"
    assert {of[case] for case in of if case.startswith(("IA3", "Vera", "OFT", "LoHa"))} == {"tensors"}


def test_a_products_norm_is_found_without_making_it() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 4, 5), torch.randn(3, 6, 4)
    found = StoredProduct(a, b, -0.5)
    close(torch.tensor(found.norm()), (0.5 * b.double() @ a.double()).norm().float())
    assert found.rank == 12 and found.dead() == 0
    a[1, 2] = 0
    b[2, :, 0] = 0
    assert StoredProduct(a, b, 1.0).dead() == 2
    rows = torch.linalg.qr(torch.randn(8, 8))[0]
    crossed = StoredProduct(torch.stack([rows[:2], -rows[:2]]).flatten(0, 1)[None], torch.ones(1, 3, 4), 1.0)
    assert crossed.norm() == 0.0  # cancels out, but for rounding


def test_what_the_files_say(tmp_path: Path) -> None:
    made = view(rank_pattern={"q_proj": 2}, use_rslora=True, modules_to_save=["lm_head"])
    found = inspect_adapter(saved(tmp_path, made))
    assert found.healthy and found.method == "LORA" and found.variant == "" and found.task == "CAUSAL_LM"
    assert found.formula == "W' = W + s B A"
    assert found.base["class"] == "LlamaForCausalLM" and found.base["vocab_size"] == 454
    assert found.targets == {"down_proj": 2, "q_proj": 2, "v_proj": 2} and found.ranks == {2: 2, 4: 4}
    assert found.settings["use_rslora"] is True and found.settings["rank_pattern"] == {"q_proj": 2}
    assert "target_modules" not in found.settings and "lora_dropout" not in found.settings
    assert found.files[WEIGHTS_NAME] == (tmp_path / WEIGHTS_NAME).stat().st_size
    squares = [found.norms[p] ** 2 for p in found.norms if ".layers.1." in p]
    assert found.by_depth()[1] == pytest.approx(math.sqrt(sum(squares))) and len(squares) == 3
    assert found.vllm is not None and "lm_head" in found.vllm[0]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["healthy"] is True and data["folder"] == str(tmp_path)
    text = str(found)
    assert "LORA" in text and "q_proj x 2" in text and "2 to 4: 2 layers of 2, 4 layers of 4" in text
    assert "change of the weights" in text and "by depth, 0 to 1" in text and "would reject it" in text


def test_an_untrained_adapter(tmp_path: Path) -> None:
    found = inspect_adapter(saved(tmp_path, get_peft_model(base(), lora())))
    assert found.problems == ["untrained: it changes nothing, s B A = 0 in every layer"] and not found.healthy
    found = inspect_adapter(saved(tmp_path / "o", get_peft_model(base(), lora(init_lora_weights="orthogonal"))))
    assert found.problems[0].startswith("untrained")  # neither A nor B is 0, but their product is
    assert "NOT SOUND" in str(found)


@pytest.mark.parametrize(
    "config",
    [
        lora(init_lora_weights="pissa"),  # starts away from 0
        IA3Config(task_type="CAUSAL_LM"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_where_the_file_does_not_tell_it_is_not_called_untrained(tmp_path: Path, config: Any) -> None:
    assert inspect_adapter(saved(tmp_path, get_peft_model(base(), config))).problems == []


def test_layers_and_ranks_that_do_nothing(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].zero_()
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"][1] = 0

    found = changed(saved(tmp_path, view()), change)
    assert found.healthy and found.dead == (1, 24)
    assert any("1 of 6 layers change nothing (s B A = 0): model.layers.0.self_attn.q_proj" in n for n in found.notes)
    assert any("1 of 24 ranks are dead (4.2%)" in n for n in found.notes)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[key][:, 0] = float("nan")
        tensors[key][0, 1] = float("-inf")

    found = changed(saved(tmp_path, view()), change)
    assert found.problems == [f"NaN or infinity in 1 tensors: {key} (17)"]
    assert len(found.norms) == 5 and json.dumps(found.to_dict(), allow_nan=False)


def test_numbers_that_float16_has_not(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        next(iter(tensors.values()))[0, 0] = 1e5

    found = changed(saved(tmp_path, view()), change)
    assert found.healthy and any(
        n.startswith("too large for float16, whose largest number is 65504") for n in found.notes
    )


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def _rename(tensors: dict[str, Tensor], new: str) -> None:
    tensors[new] = tensors.pop(KEY)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop(KEY), "'model.layers.0.self_attn.q_proj' has no lora_B.weight, only its counterpart."),
        (lambda t: t.update({KEY: t[KEY][:, :3].clone()}), "and B (16, 3), but its rank is 4"),
        (lambda t: t.update({KEY: t[KEY][:, :2].clone()}), "and B (16, 2), but its rank is 4"),
        (lambda t: _rename(t, KEY.replace("q_proj", "k_proj")), "the config has no place for base_model.model.model"),
        (lambda t: _rename(t, "lora_unet_" + KEY), "the config has no place for lora_unet_base_model"),
        (
            lambda t: [t.pop(k) for k in list(t) if "v_proj" in k],
            "no tensor belongs to target_modules: 'v_proj', which the config names",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: Any, problem: str) -> None:
    found = changed(saved(tmp_path, view()), change)
    assert any(problem in p for p in found.problems), found.problems


def test_a_config_that_says_something_else(tmp_path: Path) -> None:
    saved(tmp_path, view())
    assert "but its rank is 8" in with_config(tmp_path, r=8).problems[0]
    found = with_config(tmp_path, r=4, target_modules=r".*\.(q_proj|v_proj|down_proj)")
    assert found.healthy and len(found.norms) == 6
    found = with_config(tmp_path, target_modules=r".*nothing")
    assert "no tensor belongs to target_modules: '.*nothing', which the config names" in found.problems
    found = with_config(tmp_path, target_modules=["q_proj", "v_proj", "down_proj"], modules_to_save=["score"])
    assert found.problems == ["no tensor belongs to modules_to_save: ['score'], which the config names"]
    found = with_config(tmp_path, modules_to_save=None, something_newer=1)
    assert found.healthy and any("something_newer" in note for note in found.notes)
    assert "peft_type" in with_config(tmp_path, peft_type="LORRA").problems[0]


def test_damage_is_told_and_the_rest_looked_at(tmp_path: Path) -> None:
    saved(tmp_path, view())
    file = tmp_path / WEIGHTS_NAME
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    found = inspect_adapter(tmp_path)
    assert not found.verified and len(found.norms) == 6 and found.vllm is None
    assert found.written_by.startswith("Inlay ") and found.base["class"] == "LlamaForCausalLM"
    assert len(found.problems) == 1 and "is not the file that was saved" in found.problems[0]
    file.write_bytes(data[:-9])
    assert any("take" in p and "follow the header" in p for p in inspect_adapter(tmp_path).problems)
    file.unlink()
    assert any("is not there" in p for p in inspect_adapter(tmp_path).problems)
    (tmp_path / CONFIG_NAME).write_text("{")
    found = inspect_adapter(tmp_path)
    assert found.method is None and any("not valid JSON" in p for p in found.problems) and "unknown" in str(found)


def test_a_staged_file_counts(tmp_path: Path) -> None:
    """As after a save that was cut off: the bytes that the manifest names are those of the hidden file."""
    from inlay.io.manifest import read_manifest, staged_path

    saved(tmp_path, view())
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    staged = staged_path(tmp_path, WEIGHTS_NAME, manifest["files"][WEIGHTS_NAME]["sha256"])
    (tmp_path / WEIGHTS_NAME).rename(staged)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"the old ones")
    assert inspect_adapter(tmp_path).problems == []


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    saved(tmp_path, view())
    (tmp_path / MANIFEST_NAME).unlink()
    torch.save(load_file(tmp_path / WEIGHTS_NAME), tmp_path / PICKLE_NAME)
    (tmp_path / WEIGHTS_NAME).unlink()
    found = inspect_adapter(tmp_path)
    assert found.healthy and found.tensors == 0 and any("pickle" in n and "inlay convert" in n for n in found.notes)
    assert found.vllm == ["the weights are no adapter_model.safetensors"]


def test_which_adapters_a_folder_has(tmp_path: Path) -> None:
    made = view()
    made.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    saved(tmp_path / "both", made)
    assert adapters_in(tmp_path / "both") == [tmp_path / "both", tmp_path / "both" / "other"]
    assert adapters_in(tmp_path / "both" / "other") == [tmp_path / "both" / "other"]
    saved(tmp_path / "run" / "adapter", view())
    assert adapters_in(tmp_path / "run") == [tmp_path / "run" / "adapter"]
    (tmp_path / "none").mkdir()
    for nothing in (tmp_path / "none", tmp_path / "no"):
        with pytest.raises(MissingFileError, match="holds no adapter: expected a folder with"):
            adapters_in(nothing)
    with pytest.raises(MissingFileError, match=r"has no adapter_config\.json"):
        inspect_adapter(tmp_path / "none")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_files_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(base(), config).save_pretrained(str(tmp_path))
    found = inspect_adapter(tmp_path)
    assert found.healthy and not found.verified and found.written_by == f"peft {peft.__version__}"
    assert any(note.startswith("there is no inlay_manifest.json") for note in found.notes)
    assert found.ranks == {4: 4} and found.norms_of == "change"
