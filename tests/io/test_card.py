"""The model card: metadata that the Hub reads, and a text that belongs to the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from inlay import InlayWarning, LoraConfig, get_peft_model
from inlay.errors import FileError, StateError
from inlay.io.card import write_card
from tests.tiny import llama, mlp


def view_of(name: str | None = "org/base") -> Any:
    base = llama()
    base.config._name_or_path = name or ""
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM"))


def read(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md")


def test_a_new_card(tmp_path: Path) -> None:
    write_card(view_of(), tmp_path / "my-adapter")
    card = read(tmp_path / "my-adapter")
    assert card.data.base_model == "org/base" and card.data.library_name == "peft"
    assert card.data.tags == ["lora", "transformers", "base_model:adapter:org/base"]
    assert "# my-adapter" in card.text and "A LORA adapter for `org/base`" in card.text
    assert "PeftModel.from_pretrained(base," in card.text


def test_of_a_card_that_is_there_only_the_metadata_changes(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\ntags:\n- mine\nlibrary_name: other\n---\n# My own words\n\ntext {x}\n")
    view_of().save_pretrained(tmp_path)
    view_of().create_or_update_model_card(tmp_path)
    card = read(tmp_path)
    assert card.data.license == "mit" and card.data.library_name == "peft"
    assert card.data.tags == ["mine", "lora", "transformers", "base_model:adapter:org/base"]
    assert card.text.strip() == "# My own words\n\ntext {x}"


def test_a_card_without_metadata_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Words\n")
    write_card(view_of(), tmp_path)
    card = read(tmp_path)
    assert card.text.strip() == "# Words" and card.data.library_name == "peft"


def test_a_local_base_is_not_named(tmp_path: Path) -> None:
    write_card(view_of(str(tmp_path)), tmp_path)
    card = read(tmp_path)
    assert card.data.base_model is None and card.data.tags == ["lora", "transformers"]
    plain = get_peft_model(mlp(), LoraConfig(target_modules=["up"]))
    write_card(plain, tmp_path / "plain")
    assert read(tmp_path / "plain").data.tags == ["lora"]


def test_names_that_yaml_would_misread(tmp_path: Path) -> None:
    for name in ("org/{x}: y", "- a", "'q", "a: [b", "no"):
        write_card(view_of(name), tmp_path / "x")
        assert read(tmp_path / "x").data.base_model == name


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"---\n: [\n---\ntext", b"---\n- a list\n---\ntext"])
def test_a_card_that_cannot_be_read_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(content)
    with pytest.warns(InlayWarning, match=r"README.md' is left as it is.*it is not a model card"):
        view_of().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == content
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("content", ["", "---\nlicense: [\n", "---\n---\n", "text\n---\nmore\n---\n"])
def test_no_word_of_an_odd_one_is_lost(content: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(content)
    view_of().save_pretrained(tmp_path)
    card = read(tmp_path)
    assert card.data.library_name == "peft" and card.text.strip() in ("", content.strip())


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "README.md").symlink_to(victim)
    write_card(view_of(), tmp_path)
    assert victim.read_text() == "precious"


def test_a_folder_where_the_card_goes(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(FileError, match=r"README.md' cannot be written"):
        view_of().save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists(), "the adapter was saved first"


def test_a_view_without_adapters_has_no_card(tmp_path: Path) -> None:
    view = view_of()
    view.delete_adapter("default")
    with pytest.raises(StateError, match="no adapter"):
        write_card(view, tmp_path)
