"""Adapters on the Hugging Face Hub. The only file that may go to the network, and never for a folder that exists."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from inlay.errors import MissingFileError
from inlay.io.card import write_card
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, subfolder_of

_FILES = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, MANIFEST_NAME)


def local_folder(
    model_id: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder an adapter is in: `model_id` itself if that is a local folder, else a download from the Hub.

    With `local_files_only` what was downloaded before is all there is; with `force_download` it is fetched again.
    Raises MissingFileError if it is neither (with what the Hub said), or if `model_id` is plainly a path.
    """
    given = str(model_id)
    subfolder_of(Path(), subfolder)  # a wrong one is an error before anything is fetched
    if os.path.isdir(given):
        return subfolder_of(Path(given), subfolder)
    path_like = isinstance(model_id, Path) or given.startswith((".", "/", "~")) or given.count("/") > 1 or "\\" in given
    if path_like or os.path.exists(given):
        raise MissingFileError(f"'{given}' is not a folder. Expected a folder with {CONFIG_NAME} and {WEIGHTS_NAME}.")
    from huggingface_hub import snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + name for name in _FILES if allow_pickle or name != PICKLE_NAME]
    try:
        found = snapshot_download(
            given,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            allow_patterns=wanted,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    except Exception as error:  # every kind of failure means the same here: it could not be had
        raise MissingFileError(
            f"There is no local folder {given!r}, and it could not be fetched from the Hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no further word'}"
        ) from error
    return subfolder_of(Path(found), subfolder)


def cache_folder() -> Path:
    """Where what was fetched from the Hub is kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload adapter",
    create_pr: bool = False,
    **save_arguments: Any,
) -> Any:
    """Saves `model`'s adapters to a temporary folder and uploads it to the Hub's repository `repo_id`.

    Returns what `huggingface_hub.HfApi.upload_folder` does; `save_arguments` go to `save_pretrained`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write_card(model, folder, repo_id)  # the text; saving keeps it
        model.save_pretrained(folder, **save_arguments)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message, create_pr=create_pr
        )
