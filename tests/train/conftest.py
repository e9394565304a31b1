"""Settings of the tests of `inlay.train`: warnings of other packages that are not about us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

FOREIGN = [
    "ignore:`(is_)?gradient_checkpointing.*` is deprecated and will be removed in v6:FutureWarning",  # 5.23 renamed it
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",  # the tests' own, to be fast
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # torch's own import, by hqq's
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for warning in FOREIGN:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """What Trainer changes of the process."""
    import torch

    yield
    torch.set_default_dtype(torch.float32)
