"""The Hub: a folder that exists is never looked for there, and what it says becomes one kind of error."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import LoraConfig, PeftConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, MissingFileError, UnsafeFileError
from inlay.io.hub import local_folder
from tests.tiny import mlp, scramble

X = torch.ones(2, 8)


class Network(AssertionError):
    """Someone went to the network."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Network

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    view = scramble(get_peft_model(mlp(), LoraConfig(target_modules=["up"])))
    view.save_pretrained(tmp_path / "adapter")
    view.save_pretrained(tmp_path / "adapter" / "sub")
    return view, tmp_path / "adapter"


def test_local_folders_need_no_network(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view, folder = saved
    monkeypatch.chdir(folder.parent)
    for given in (folder, str(folder), "adapter", "./adapter", Path("adapter"), f"{folder}/", "adapter/sub"):
        assert torch.equal(PeftModel.from_pretrained(mlp(), given)(X), view(X))
        assert PeftConfig.from_pretrained(given).peft_type == "LORA"
        assert local_folder(given) == Path(str(given))
    assert torch.equal(PeftModel.from_pretrained(mlp(), "adapter", subfolder="sub")(X), view(X))
    view.load_adapter(folder, "again")
    view.save_pretrained(folder)


def test_a_local_folder_that_lacks_a_file_is_not_looked_up_either(saved: Any) -> None:
    _, folder = saved
    (folder / "inlay_manifest.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"has no adapter_model.safetensors"):
        PeftModel.from_pretrained(mlp(), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(MissingFileError, match=r"has no adapter_config.json.*Its subfolders hold adapters: sub"):
        PeftModel.from_pretrained(mlp(), folder)


@pytest.mark.parametrize("given", ["./none", "../none", "/none", "~/none", "a/b/c", "a\\b", "."])
def test_26_what_is_plainly_a_path_is_never_asked_for(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError):
        PeftModel.from_pretrained(mlp(), given)


def test_a_file_is_no_folder(saved: Any) -> None:
    _, folder = saved
    with pytest.raises(MissingFileError, match=r"is not a folder. Expected a folder with adapter_config.json"):
        PeftModel.from_pretrained(mlp(), folder / "adapter_config.json")


@pytest.mark.parametrize("subfolder", ["../adapter", "..", "/etc", "sub/../..", "a\\..\\b", "C:x", "a\0b", "a\nb"])
def test_46_a_subfolder_stays_inside(subfolder: str, saved: Any) -> None:
    with pytest.raises(ConfigError, match=r"subfolder=.* is not allowed"):
        PeftModel.from_pretrained(mlp(), saved[1], subfolder=subfolder)


def test_46_nor_does_a_link_lead_out(saved: Any, tmp_path: Path) -> None:
    _, folder = saved
    outside = tmp_path / "outside"
    (folder / "sub").rename(outside)
    (folder / "link").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="outside"):
        PeftModel.from_pretrained(mlp(), folder, subfolder="link")


def test_what_the_hub_says_becomes_a_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("404 not there\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(
        MissingFileError, match=r"no local folder 'org/adapter', and .*from the Hub: OSError: 404 not there$"
    ):
        PeftModel.from_pretrained(mlp(), "org/adapter")


def test_downloads_ask_for_the_adapters_files_only(saved: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    view, folder = saved
    asked: list[Any] = []

    def download(repo: str, **kwargs: Any) -> str:
        asked.append((repo, kwargs))
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = PeftModel.from_pretrained(mlp(), "org/name", subfolder="sub", revision="v1", token="t", cache_dir="c")
    assert torch.equal(again(X), view(X))
    for repo, kwargs in asked:
        assert repo == "org/name" and (kwargs["revision"], kwargs["token"], kwargs["cache_dir"]) == ("v1", "t", "c")
        assert kwargs["allow_patterns"] == [
            "sub/adapter_config.json",
            "sub/adapter_model.safetensors",
            "sub/inlay_manifest.json",
        ], "no pickle"
    asked.clear()
    local_folder("org/name", allow_pickle=True)
    assert "adapter_model.bin" in asked[0][1]["allow_patterns"]


def test_push_uploads_a_saved_folder(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    view, _ = saved
    done: dict[str, Any] = {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            done["token"] = token

        def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
            done["repo"] = kwargs
            return type("Url", (), {"repo_id": f"user/{repo_id}"})

        def upload_folder(self, **kwargs: Any) -> str:
            done["upload"] = kwargs
            done["files"] = sorted(p.name for p in Path(kwargs["folder_path"]).iterdir())
            return "commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert (
        view.push_to_hub("mine", private=True, token="t", commit_message="m", revision="r", create_pr=True) == "commit"
    )
    assert done["token"] == "t" and done["repo"] == {"private": True, "exist_ok": True}
    assert done["upload"]["repo_id"] == "user/mine" and done["upload"]["commit_message"] == "m"
    assert done["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors", "inlay_manifest.json"]
    assert not Path(done["upload"]["folder_path"]).exists()


def test_a_path_object_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"'org/name' is not a folder"):
        PeftModel.from_pretrained(mlp(), Path("org/name"))


@pytest.mark.parametrize("subfolder", ["../x", "/etc", "a/../../b"])
def test_46_a_subfolder_is_checked_before_anything_is_fetched(subfolder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: Any, **__: Any) -> Any:
        raise Network

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match=r"subfolder=.* is not allowed"):
        PeftModel.from_pretrained(mlp(), "org/name", subfolder=subfolder)


def test_a_view_is_fetched_once(saved: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One answer of the Hub for config and weights, whatever is uploaded meanwhile."""
    import huggingface_hub

    view, folder = saved
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: asked.append(repo) or str(folder))
    assert torch.equal(PeftModel.from_pretrained(mlp(), "org/name", allow_pickle=True)(X), view(X))
    assert asked == ["org/name"]


def test_what_transformers_passes_along_with_a_config(
    saved: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _, **kw: asked.append(kw) or str(saved[1]))
    more = {"revision": "v1", "local_files_only": True, "force_download": True, "proxies": None, "tqdm_class": None}
    assert PeftConfig.from_pretrained("org/name", **more).peft_type == "LORA"
    (kwargs,) = asked
    assert (kwargs["revision"], kwargs["local_files_only"], kwargs["force_download"]) == ("v1", True, True)


def test_the_card_that_is_pushed_names_the_repository(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    texts = []

    class Api:
        def __init__(self, token: Any = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: str, **_: Any) -> None:
            texts.append((Path(folder_path) / "README.md").read_text())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    saved[0].push_to_hub("org/mine")
    assert "# mine" in texts[0] and 'from_pretrained(base, "org/mine")' in texts[0] and "/tmp" not in texts[0]
