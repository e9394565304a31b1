"""Saving: what a folder then holds, and what is refused before anything is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, FileError, MismatchError, NumericsError, StateError, UnsafeFileError
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, open_folder
from inlay.io.save import get_peft_model_state_dict, save_config, save_pretrained
from tests.tiny import ids, llama, mlp, scramble

X = torch.ones(2, 8)
FILES = {CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, "README.md"}


def view_of(base: Any = None, name: str = "default", **fields: Any) -> Any:
    fields = {"target_modules": ["up"], "r": 2, **fields}
    return scramble(get_peft_model(mlp() if base is None else base, LoraConfig(**fields), name))


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_one_adapter(tmp_path: Path) -> None:
    view = view_of()
    view.save_pretrained(tmp_path)
    assert names(tmp_path) == FILES
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    assert set(tensors) == {"base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"}
    assert torch.equal(tensors["base_model.model.up.lora_A.weight"], view.up.adapters["default"].A)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config["inference_mode"] is True and config["r"] == 2 and config["peft_type"] == "LORA"
    assert view.peft_config["default"].inference_mode is False
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert set(manifest["files"]) == {CONFIG_NAME, WEIGHTS_NAME} and manifest["base"]["class"] == "Mlp"
    assert open_folder(tmp_path).verified


def test_adapters_of_other_names_have_folders_of_their_own(tmp_path: Path) -> None:
    view = view_of(name="a")
    view.add_adapter("default", LoraConfig(target_modules=["down"]))
    view.add_adapter("c", LoraConfig(target_modules=["down"]))
    view.save_pretrained(tmp_path)
    assert names(tmp_path) == FILES | {f"{n}/{f}" for n in "ac" for f in FILES - {"README.md"}}
    view.save_pretrained(tmp_path / "one", selected_adapters=["c"])
    assert names(tmp_path / "one") == {f"c/{f}" for f in FILES - {"README.md"}} | {"README.md"}
    again = PeftModel.from_pretrained(mlp(), tmp_path, subfolder="a")
    assert torch.equal(again(X), view(X))


def test_saving_twice_gives_equal_bytes(tmp_path: Path) -> None:
    view = view_of(modules_to_save=["down"])
    for folder in ("one", "two"):
        view.save_pretrained(tmp_path / folder)
    for name in FILES - {"README.md"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("# mine\n")
    view_of().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    assert "# mine" in (tmp_path / "README.md").read_text()


def test_a_relative_path_and_parents_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    view = view_of()
    view.save_pretrained("a/b/c")
    assert names(tmp_path / "a" / "b" / "c") == FILES
    view.save_pretrained(str(tmp_path / "d"))
    assert names(tmp_path / "d") == FILES


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"safe_serialization": False},
            UnsafeFileError,
            "would write a pickle; adapters are saved as safetensors only",
        ),
        (
            {"save_embedding_layers": "yes"},
            ConfigError,
            "save_embedding_layers='yes' is not allowed.*True, False or 'auto'",
        ),
        ({"save_embedding_layers": None}, ConfigError, "save_embedding_layers=None"),
        ({"selected_adapters": ["x"]}, StateError, "There is no adapter 'x'; loaded: 'default'"),
        ({"selected_adapters": ["default", "x"]}, StateError, "There is no adapter 'x'"),
        ({"state_dict": {}}, MismatchError, "The state_dict lacks 'up.adapters.default.lora_A'"),
    ],
)
def test_what_is_refused_before_anything_is_written(arguments: Any, error: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        view_of().save_pretrained(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_one_bad_adapter_of_two_leaves_no_half(tmp_path: Path) -> None:
    view = view_of(name="a")
    view.add_adapter("b", LoraConfig(target_modules=["down"]))
    view.down.adapters["b"].A.data[0, 0] = float("inf")
    with pytest.raises(NumericsError, match=r"base_model.model.down.lora_A.weight.*the adapter that is being saved"):
        view.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_view_without_adapters_has_nothing_to_save(tmp_path: Path) -> None:
    view = view_of()
    view.delete_adapter("default")
    with pytest.raises(StateError, match="no adapter"):
        view.save_pretrained(tmp_path / "new")
    with pytest.raises(StateError, match="This Mlp has no adapters"):
        save_pretrained(mlp(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path) -> None:
    view_of().save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


def test_the_state_dict_a_caller_gathered(tmp_path: Path) -> None:
    view = view_of()
    gathered = {k: v + 1 for k, v in view.state_dict().items()}
    view.save_pretrained(tmp_path, state_dict=gathered)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    assert torch.equal(tensors["base_model.model.up.lora_A.weight"], view.up.adapters["default"].A + 1)
    compiled = {f"_orig_mod.{k}": v for k, v in gathered.items()}
    view.save_pretrained(tmp_path, state_dict=compiled)
    assert torch.equal(
        load_file(tmp_path / WEIGHTS_NAME)["base_model.model.up.lora_A.weight"], gathered["up.adapters.default.lora_A"]
    )


def test_a_mistaken_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError):
        view_of().save_pretrained(tmp_path / "file")
    (tmp_path / WEIGHTS_NAME).mkdir()
    with pytest.raises(FileError, match="is a folder, where a file of the adapter goes"):
        view_of().save_pretrained(tmp_path)


def test_12_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (*FILES, f".{CONFIG_NAME}.new"):
        os.symlink(victim, folder / name)
    view = view_of()
    view.save_pretrained(folder)
    assert victim.read_text() == "precious"
    assert torch.equal(PeftModel.from_pretrained(mlp(), folder)(X), view(X))
    other = tmp_path / "other"
    other.mkdir()
    for name in (CONFIG_NAME, f".{CONFIG_NAME}.new"):
        os.symlink(victim, other / name)
    LoraConfig().save_pretrained(other)
    assert victim.read_text() == "precious" and not (other / CONFIG_NAME).is_symlink()


@pytest.mark.parametrize("what", ["embedding", "bias", "norm"])
def test_35_weights_of_the_base_that_were_trained_would_be_lost(what: str, tmp_path: Path) -> None:
    view = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    path = {"embedding": "model.embed_tokens", "bias": "lm_head", "norm": "model.norm"}[what]
    view.get_submodule(path).requires_grad_(True)
    with pytest.raises(StateError, match=rf"'{path}.weight' .*modules_to_save.*requires_grad_\(False\)"):
        view.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    view.get_submodule(path).requires_grad_(False)
    view.save_pretrained(tmp_path / "new")


# ---------------------------------------------------------------------- embeddings


def keys(tmp_path: Path, view: Any, **arguments: Any) -> set[str]:
    view.save_pretrained(tmp_path, **arguments)
    return {k.removeprefix("base_model.model.") for k in load_file(tmp_path / WEIGHTS_NAME)}


def test_embeddings_are_saved_where_they_are_adapted(tmp_path: Path) -> None:
    lora = {f"model.layers.{i}.self_attn.q_proj.lora_{x}.weight" for i in range(2) for x in "AB"}
    view = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    assert keys(tmp_path, view) == lora == keys(tmp_path, view, save_embedding_layers=False)
    assert keys(tmp_path, view, save_embedding_layers=True) == lora | {"model.embed_tokens.weight", "lm_head.weight"}
    view = get_peft_model(llama(), LoraConfig(target_modules=["lm_head"]))
    head = {"lm_head.lora_A.weight", "lm_head.lora_B.weight"}
    assert keys(tmp_path, view) == head | {"lm_head.base_layer.weight"}
    assert keys(tmp_path, view, save_embedding_layers=False) == head


@pytest.mark.parametrize("merged", [False, True])
def test_resized_embeddings_travel_with_the_adapter(merged: bool, tmp_path: Path) -> None:
    base = llama()
    base.resize_token_embeddings(44)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["embed_tokens", "lm_head"], task_type="CAUSAL_LM")))
    x = ids(2, 4, 44)
    y = view(x).logits
    if merged:
        view.merge_adapter()
    view.save_pretrained(tmp_path)
    other = llama()
    other.resize_token_embeddings(44)
    with torch.no_grad():
        other.model.embed_tokens.weight[40:] += 1
    before = other.model.embed_tokens.weight.detach().clone()
    again = PeftModel.from_pretrained(other, tmp_path)
    assert torch.equal(again(x).logits, y)
    assert torch.equal(other.model.embed_tokens.weight, before), "the view has its own"


# ---------------------------------------------------------------------- state dicts, configs


def test_the_state_dict_is_the_file(tmp_path: Path) -> None:
    view = view_of(modules_to_save=["down"], bias="lora_only")
    view.save_pretrained(tmp_path)
    state, file = get_peft_model_state_dict(view), load_file(tmp_path / WEIGHTS_NAME)
    assert state.keys() == file.keys() and all(torch.equal(state[k], file[k]) for k in file)
    assert not any(t.requires_grad for t in state.values())
    with pytest.raises(StateError, match="no adapter 'x'"):
        get_peft_model_state_dict(view, adapter_name="x")
    compiled = torch.compile(view, backend="eager")
    assert get_peft_model_state_dict(compiled).keys() == state.keys()


def test_a_config_saved_over_an_adapter_leaves_a_whole_one(tmp_path: Path) -> None:
    view = view_of()
    view.save_pretrained(tmp_path)
    weights = (tmp_path / WEIGHTS_NAME).read_bytes()
    save_config(view.peft_config["default"].replaced(lora_alpha=99), tmp_path)
    assert open_folder(tmp_path).verified and (tmp_path / WEIGHTS_NAME).read_bytes() == weights
    assert PeftModel.from_pretrained(mlp(), tmp_path).peft_config["default"].lora_alpha == 99


def test_a_config_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match=r"adapter_config.json' cannot be written"):
        LoraConfig().save_pretrained(tmp_path / "file" / "x")
