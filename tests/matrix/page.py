"""`docs/support.md`, written when a test run has been through the whole matrix. `tests/conftest.py` has its hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from tests.matrix.models import Model

PAGE = Path(__file__).parents[2] / "docs" / "support.md"

Results = Mapping[tuple[str, str], str | None]  # (model, method) -> None if it works, or the reason why it cannot

TOP = """\
# What works with what

Every cell of this page is a test in `tests/matrix`, and a full run of them writes the page. A ✓ says that the method
finds its targets in such a model without being told; that a training step lowers the loss and leaves every weight of
the base as it was, bit for bit; that `generate` with its cache gives the tokens of a full pass; and that the saved
adapter, loaded on another copy of the base, gives the same outputs. A number is the reason why that cannot be: there
the library raises an error that says so. The models are small, with random weights; the rows are transformers'
`model_type`s (`glm` and `glm4` are ChatGLM's architecture) and diffusers' U-Net.
"""

QUANTISED = """\
## Quantised bases

The base product is the quantised layer's own, so every method that works on linear layers trains on them. `tests/quant`
holds each library to the same: gradients are those on the dequantised base; the base keeps its numbers, and other views
theirs; merging rounds as reported and is undone bit for bit; a merge with `dequantize=True` is exact and is saved as a
normal model. On the CPU; bitsandbytes and torchao int8 on an H200 as well:

| library | tested | merge into it | merge into dense layers |
| --- | --- | :-: | :-: |
| bitsandbytes 4-bit (NF4, FP4, double quantisation) | itself, also with the real SmolLM2-135M | ✓ | ✓ |
| bitsandbytes 8-bit | itself, also with the real SmolLM2-135M | ✓ | ✓ |
| torchao int8, 2- to 8-bit (`IntxUnpackedToInt8Tensor`) | itself, also with the real SmolLM2-135M | ✓ | ✓ |
| torchao float8 | itself | ✓ | ✓ |
| torchao int4 (`Int4Tensor`) | its interface (needs a GPU) | ✓ | ✓ |
| other tensors of torchao | `dequantize()` | raises | ✓ |
| HQQ | itself, made with hqq: transformers 5.23 does not load it | ✓ | ✓ |
| GPTQ (gptqmodel) | its interface, on layers packed by hand | raises | ✓ |
| AWQ (gptqmodel, AutoAWQ; format GEMM) | its interface, on layers packed by hand | raises | ✓ |
"""

_found: dict[tuple[str, str], str | None] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collects the cells that passed, also from the workers of pytest-xdist."""
    if report.when == "call" and (report.passed or hasattr(report, "wasxfail")):
        for name, value in report.user_properties:
            if name == "cell":
                model, method, reason = value  # type: ignore[misc]
                _found[model, method] = reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the page if every cell has passed and the page says something else."""
    if hasattr(session.config, "workerinput") or not _found:
        return
    from tests.matrix.methods import cells

    if _found.keys() != {(str(model), method) for model, method in cells()}:
        return
    text = render(_found)
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")


def render(results: Results) -> str:
    """The page."""
    from tests.matrix.methods import methods, shown
    from tests.matrix.models import MODELS

    models = [m for m in MODELS if any((str(m), method) in results for method in methods())]
    everywhere = [method for method in methods() if all(results[str(m), method] is None for m in models)]
    rest = [method for method in methods() if method not in everywhere]
    reasons = list(dict.fromkeys(r for m in models for method in rest if (r := results[str(m), method]) is not None))

    def mark(m: Model, method: str) -> str:
        reason = results[str(m), method]
        return "✓" if reason is None else str(1 + reasons.index(reason))

    def table(first: str, rows: Mapping[str, Model]) -> str:
        header = [first, *(["all above"] if everywhere else []), *(name.removesuffix("Config") for name in rest)]
        lines = [header, ["---"] + [":-:"] * (len(header) - 1)]
        lines += [[row, *(["✓"] if everywhere else []), *(mark(m, name) for name in rest)] for row, m in rows.items()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    parts = [TOP]
    if everywhere:
        names = ", ".join(f"`{shown(name)}`" for name in everywhere)
        parts.append(f"These {len(everywhere)} methods work everywhere ('all above' in the tables): {names}.\n")
    for task in dict.fromkeys(m.task for m in models if m.task_type is not None):
        rows = {m.family: m for m in models if m.task == task}
        parts.append(f"## {task}\n\n{table('model', rows)}\n")
    others = {f"{m.family}, {m.task}": m for m in models if m.task_type is None}
    parts.append(f"## Tasks without a task type\n\n{table('model', others)}\n")
    parts.append(QUANTISED)
    if reasons:
        parts.append("## Reasons\n\n" + "\n".join(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)) + "\n")
    return "\n".join(parts)
