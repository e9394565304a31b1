"""Settings of every test: one thread, a fixed seed, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.matrix.page import pytest_runtest_logreport as pytest_runtest_logreport
from tests.matrix.page import pytest_sessionfinish as pytest_sessionfinish

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers or huggingface_hub is imported


TRAINING = {"recipe", "runs", "train", "preflight"}
FOREIGN = [  # what other packages say where runs are trained, which is not about us
    "ignore:`(is_)?gradient_checkpointing.*` is deprecated and will be removed in v6:FutureWarning",  # 5.23 renamed it
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",  # the tests' own, to be fast
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # torch's own import, by hqq's
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TRAINING & set(item.path.parts):
            for warning in FOREIGN:
                item.add_marker(pytest.mark.filterwarnings(warning))


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
