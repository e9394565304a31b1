"""Settings of every test: one thread, a fixed seed, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.matrix.page import pytest_runtest_logreport as pytest_runtest_logreport
from tests.matrix.page import pytest_sessionfinish as pytest_sessionfinish

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers or huggingface_hub is imported


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    import torch

    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
