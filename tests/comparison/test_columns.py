"""Which model answers in which column, on one base, and that all is as before afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay import IA3Config
from inlay.comparison import Comparison, Decoding, compare
from inlay.comparison.answers import losses, write
from inlay.comparison.questions import questions_of
from inlay.data import prepare
from inlay.errors import ConfigError, DataError, MissingFileError, StateError
from tests import tiny
from tests.comparison.lm import TOKENIZER, base, view
from tests.hf.tiny import base as other_family

PROMPTS, REFERENCES = ["Name three rivers.", "Count"], ["Rhine", None]
SHORT = Decoding(max_new_tokens=6)


def run(model: Any, adapters: Any = None, **changes: Any) -> Comparison:
    arguments = {"references": REFERENCES, "decoding": SHORT, **changes}
    return compare(model, adapters, PROMPTS, TOKENIZER, **arguments)


def alone(model: Any, decoding: Decoding = SHORT) -> list[Any]:
    """Answers of a model that is asked by itself."""
    questions = questions_of(PROMPTS, TOKENIZER, REFERENCES)
    (loss,) = losses(model, [q.row for q in questions if q.row is not None], TOKENIZER)
    return list(zip(write(model, questions, TOKENIZER, decoding), [loss.mean, None], strict=True))


def column(comparison: Comparison, name: str) -> list[Any]:
    i = comparison.columns.index(name)
    return [(row.answers[i].text, row.answers[i].loss) for row in comparison.rows]


def two() -> Any:
    """A view with adapters "default" and "second"."""
    made = view()
    made.add_adapter("second", IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    return tiny.scramble(made, 0.3, seed=9).eval()


@pytest.mark.parametrize("decoding", [SHORT, Decoding(max_new_tokens=6, temperature=1.0, seed=4)])
def test_every_column_is_that_model_asked_alone(decoding: Decoding) -> None:
    model = two()
    found = run(model, decoding=decoding)
    assert found.columns == ("base", "default", "second")
    assert column(found, "base") == alone(base(), decoding)
    for name in ("default", "second"):
        model.set_adapter(name)
        assert column(found, name) == alone(model, decoding)
    assert len({str(column(found, name)) for name in found.columns}) == 3
    assert [row.prompt for row in found.rows] == PROMPTS and [row.reference for row in found.rows] == REFERENCES
    assert found.settings["seed"] == decoding.seed


def test_adapters_by_name_folder_and_object_give_the_same(tmp_path: Path) -> None:
    model, plain = view(), base()
    model.save_pretrained(str(tmp_path / "run" / "adapter"))
    by_name = run(model, ["default"])
    by_folder = run(plain, [tmp_path / "run" / "adapter"])
    by_run = run(plain, [tmp_path / "run"])
    by_object = run(model.unload(), {"mine": model})
    assert by_folder.columns == by_run.columns == ("base", "run") and by_object.columns == ("base", "mine")
    assert by_name.rows == by_folder.rows == by_run.rows == by_object.rows


def test_a_merged_model_can_stand_beside_them() -> None:
    model = view()
    merged = model.merge_and_unload()
    found = run(model, {"adapter": "default", "merged": merged})
    assert [a[0] for a in column(found, "adapter")] == [a[0] for a in column(found, "merged")]
    assert column(found, "merged")[0][1] == pytest.approx(column(found, "adapter")[0][1], rel=1e-5)


def test_the_base_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view().save_pretrained(str(tmp_path))
    plain, seen = base(), []

    def noting(model: Any, *args: Any) -> Any:
        seen.append(model.model.layers[0].self_attn.q_proj.weight.data_ptr())
        return write(model, *args)

    monkeypatch.setattr("inlay.comparison.columns.write", noting)
    run(plain, [tmp_path])
    assert seen == [plain.model.layers[0].self_attn.q_proj.weight.data_ptr()] * 2


def test_all_is_as_before(tmp_path: Path) -> None:
    model = two()
    model.set_adapter("second")
    model.train()
    view().save_pretrained(str(tmp_path / "other"))
    before, grad = tiny.outline(model), [p.requires_grad for p in model.unload().parameters()]
    run(model, ["default", tmp_path / "other"])
    assert tiny.outline(model) == before and [p.requires_grad for p in model.unload().parameters()] == grad
    assert list(model.active_adapters) == ["second"] and model.training
    plain = base()
    run(plain, [tmp_path / "other"])
    assert all(p.requires_grad for p in plain.parameters())


def test_a_view_that_answers_as_its_base_still_does() -> None:
    model = view()
    model.disable_adapters()
    found = run(model)
    assert column(found, "default") != column(found, "base")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(input_ids=ids).logits, base()(input_ids=ids).logits)


def test_prepared_rows_bring_prompts_and_references() -> None:
    rows = [{"instruction": "Name three rivers.", "output": "Rhine"}, {"instruction": "Count", "output": "2, 3"}]
    prepared = prepare(rows, TOKENIZER)
    model = view()
    found = compare(model, None, prepared, TOKENIZER, decoding=SHORT)
    texts = [r["instruction"] for r in rows]
    asked = compare(model, None, texts, TOKENIZER, [r["output"] for r in rows], format="alpaca", decoding=SHORT)
    assert [r.answers for r in found.rows] == [r.answers for r in asked.rows]
    assert [r.reference for r in found.rows] == ["Rhine", "2, 3"]
    assert found.settings["format"] == "alpaca"


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    model = view()
    before = tiny.outline(model)
    with pytest.raises(
        ConfigError, match=r"adapters='defalt' is not allowed.*\(default\), a run's folder, or a folder.*Did you mean"
    ):
        run(model, ["defalt"])
    with pytest.raises(ConfigError, match="columns of different names"):
        run(model, ["default", "default"])
    with pytest.raises(ConfigError, match="at least one adapter to compare"):
        run(model.unload())
    with pytest.raises(ConfigError, match="a list of adapters"):
        run(model, "default")
    with pytest.raises(ConfigError, match="tokenizer=None is not allowed"):
        compare(model, None, PROMPTS)
    with pytest.raises(DataError, match="no prompts"):
        compare(model, None, [], TOKENIZER)
    with pytest.raises(ConfigError, match="expected a causal language model"):
        run(other_family("t5"))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    with pytest.raises(MissingFileError):
        run(model, [tmp_path])
    assert tiny.outline(model) == before
    model.merge_adapter()
    with pytest.raises(StateError, match="'default' is merged into the weights: call unmerge_adapter"):
        run(model)


def test_it_is_a_public_name_whatever_was_imported_before() -> None:
    assert inlay.compare is compare
