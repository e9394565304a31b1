"""`transformers.Trainer` with a view for its model: nothing but the adapter is trained, saved and restored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.trainer
import transformers.trainer_utils
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from inlay import PeftModel, get_peft_model
from inlay.hf import trainer as glue
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME

from . import tiny
from .tiny import arguments, copied, fill, lora, rows

ADAPTER_FILES = {CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME}
TRAINER_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"}
def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def test_trains_evaluates_and_predicts_with_the_base_unchanged(tmp_path: Path) -> None:
    base = tiny.base("llama")
    before, weights = tiny.logits(base), {k: p.clone() for k, p in base.state_dict().items()}
    view = get_peft_model(base, lora())
    trainer = Trainer(view, arguments(tmp_path, max_steps=20), train_dataset=rows(), eval_dataset=rows())
    start = trainer.evaluate()["eval_loss"]
    assert trainer.train().global_step == 20
    assert trainer.evaluate()["eval_loss"] < start - 0.1
    predicted = trainer.predict(rows(4)).predictions
    with torch.no_grad():
        expected = view.eval()(torch.stack([row["input_ids"] for row in rows(4)])).logits
    assert torch.allclose(torch.from_numpy(predicted), expected, atol=1e-5)
    assert not base.training
    assert torch.equal(tiny.logits(base), before)
    assert_equal(base.state_dict(), weights)
    assert not torch.allclose(tiny.logits(view), before, atol=1e-2)


def test_two_views_of_one_base_train_in_turn(tmp_path: Path) -> None:
    base = tiny.base("llama")
    before = tiny.logits(base)
    first, second = get_peft_model(base, lora()), get_peft_model(base, lora(r=4))
    Trainer(first, arguments(tmp_path), train_dataset=rows()).train()
    trained = copied(first)
    Trainer(second, arguments(tmp_path), train_dataset=rows()).train()
    assert_equal(copied(first), trained)
    assert torch.equal(tiny.logits(base), before)


def test_a_checkpoint_holds_the_adapter_and_nothing_of_the_base(tmp_path: Path) -> None:
    view = get_peft_model(tiny.base("llama"), lora())
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    Trainer(view, args, train_dataset=rows(), processing_class=tiny.tokenizer()).train()
    for folder in (tmp_path / "checkpoint-3", tmp_path / "checkpoint-6"):
        assert names(folder) == ADAPTER_FILES | TRAINER_FILES | {"README.md", "tokenizer.json", "tokenizer_config.json"}
        saved = load_file(folder / WEIGHTS_NAME)
        assert len(saved) == len(copied(view))
        assert all(".lora_A." in key or ".lora_B." in key for key in saved)
        again = PeftModel.from_pretrained(tiny.base("llama"), str(folder))
        if folder.name == "checkpoint-6":
            assert_equal(copied(again), copied(view))


def test_fewer_checkpoints_and_model_only(tmp_path: Path) -> None:
    view = get_peft_model(tiny.base("llama"), lora())
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2, save_only_model=True)
    Trainer(view, args, train_dataset=rows()).train()
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-6"}
    assert names(tmp_path / "checkpoint-6") == ADAPTER_FILES | {"README.md", "training_args.bin", "trainer_state.json"}


def test_save_model_writes_an_adapter_folder(tmp_path: Path) -> None:
    view = get_peft_model(tiny.base("llama"), lora())
    trainer = Trainer(view, arguments(tmp_path), train_dataset=rows())
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert names(tmp_path) == ADAPTER_FILES | {"README.md", "training_args.bin", "elsewhere"}
    again = PeftModel.from_pretrained(tiny.base("llama"), str(tmp_path / "elsewhere"))
    assert torch.equal(tiny.logits(again), tiny.logits(view.eval()))


# ---------------------------------------------------------------- resuming


def noisy(adapter_seed: int, cls: Any = None, **changes: Any) -> Any:
    """A view with dropout in base and adapter."""
    base = tiny.base("llama", cls, attention_dropout=0.1)
    return fill(get_peft_model(base, lora(lora_dropout=0.3, **changes)), adapter_seed)


@pytest.mark.parametrize("how", ["newest", "path"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, how: str) -> None:
    options = {"gradient_accumulation_steps": 2, "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "max_grad_norm": 0.5}
    whole = noisy(1)
    Trainer(whole, arguments(tmp_path, **options), train_dataset=rows(24)).train()
    first_half = load_file(tmp_path / "checkpoint-4" / WEIGHTS_NAME)
    if how == "newest":
        (tmp_path / "checkpoint-8").rename(tmp_path / "finished")
    torch.manual_seed(99)
    resumed = noisy(2)
    trainer = Trainer(resumed, arguments(tmp_path, **options), train_dataset=rows(24))
    trainer.train(resume_from_checkpoint=True if how == "newest" else str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 8
    assert_equal(copied(resumed), copied(whole))
    assert not torch.equal(first_half["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"],
                           whole.model.layers[0].mlp.down_proj.adapters.default.B)


def test_the_head_of_a_classifier_is_saved_and_resumed(tmp_path: Path) -> None:
    def data() -> list[dict[str, Any]]:
        return [{**row, "labels": torch.tensor(i % 3)} for i, row in enumerate(rows(12))]

    options = {"save_strategy": "steps", "save_steps": 3}
    base = tiny.classifier()
    score = base.score.weight.clone()
    whole = get_peft_model(base, lora(task_type="SEQ_CLS"))
    Trainer(whole, arguments(tmp_path, **options), train_dataset=data()).train()
    saved = load_file(tmp_path / "checkpoint-6" / WEIGHTS_NAME)
    assert torch.equal(saved["base_model.model.score.weight"], whole.score.adapters.default.module.weight)
    assert not torch.equal(saved["base_model.model.score.weight"], score)
    assert torch.equal(base.score.weight, score)
    resumed = get_peft_model(tiny.classifier(), lora(task_type="SEQ_CLS"))
    Trainer(resumed, arguments(tmp_path, **options), train_dataset=data()).train(str(tmp_path / "checkpoint-3"))
    assert_equal(copied(resumed), copied(whole))


def two_adapters(active: str, **changes: Any) -> Any:
    view = get_peft_model(tiny.base("llama"), lora(**changes))
    view.add_adapter("other", lora(**changes))
    fill(view, 7)
    view.set_adapter(active)
    return view


@pytest.mark.parametrize("active", ["default", "other"])
def test_the_active_one_of_two_adapters_resumes(tmp_path: Path, active: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    idle = "other" if active == "default" else "default"
    whole = two_adapters(active)
    untouched = copied(whole, idle)
    Trainer(whole, arguments(tmp_path, **options), train_dataset=rows()).train()
    assert_equal(copied(whole, idle), untouched)
    resumed = fill(two_adapters(active), 8)
    Trainer(resumed, arguments(tmp_path, **options), train_dataset=rows()).train(str(tmp_path / "checkpoint-3"))
    assert_equal(copied(resumed), copied(whole))
    assert resumed.active_adapters == [active]


# ---------------------------------------------------------------- the best checkpoint


def scores(values: list[float]) -> Any:
    """`compute_metrics` that returns `values` one after the other."""
    left = iter(values)
    return lambda _: {"score": next(left)}


class Keep(TrainerCallback):
    """Keeps the adapters as they were at each evaluation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(copied(model))


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True,
        "metric_for_best_model": "score", "greater_is_better": True}


@pytest.mark.parametrize("limit", [None, 1])
def test_the_best_adapter_is_loaded_at_the_end(tmp_path: Path, limit: int | None) -> None:
    keep, view = Keep(), get_peft_model(tiny.base("llama"), lora())
    args = arguments(tmp_path, save_total_limit=limit, **BEST)
    trainer = Trainer(
        view, args, train_dataset=rows(), eval_dataset=rows(4), compute_metrics=scores([1.0, 3.0, 2.0]), callbacks=[keep]
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert_equal(copied(view), keep.seen[1])
    assert not torch.equal(*(next(iter(seen.values())) for seen in keep.seen[1:]))


def test_the_best_of_the_active_adapter_is_loaded_not_another_adapter(tmp_path: Path) -> None:
    keep, view = Keep(), two_adapters("other")
    trainer = Trainer(
        view,
        arguments(tmp_path, **BEST),
        train_dataset=rows(),
        eval_dataset=rows(4),
        compute_metrics=scores([3.0, 2.0, 1.0]),
        callbacks=[keep],
    )
    trainer.train()
    assert_equal(copied(view), keep.seen[0])


# ---------------------------------------------------------------- what Trainer infers from the model


@pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
def test_label_smoothing_gives_the_plain_models_loss(tmp_path: Path, family: str) -> None:
    base, inputs = tiny.base(family), tiny.batch(family)
    if family == "t5":  # without labels, which Trainer takes away, the decoder needs its input
        inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(inputs["labels"])
    view = get_peft_model(base, lora(family))  # fresh: answers as the base
    losses = []
    for model in (tiny.base(family), view):
        trainer = Trainer(model.eval(), arguments(tmp_path, label_smoothing_factor=0.2))
        losses.append(trainer.compute_loss(model, dict(inputs)).detach())
    assert torch.equal(*losses)
    assert not torch.allclose(losses[0], base(**inputs).loss)


@pytest.mark.parametrize("family", ["llama", "bloom", "t5", "vit"])
def test_columns_and_labels_are_those_of_the_plain_model(tmp_path: Path, family: str) -> None:
    found = []
    for model in (tiny.base(family), get_peft_model(tiny.base(family), lora(family))):
        trainer = Trainer(model, arguments(tmp_path))
        trainer._set_signature_columns_if_needed()
        kept = {k: sorted(v) if isinstance(v, list) else v for k, v in vars(trainer).items() if k in {
            "_signature_columns", "label_names", "can_return_loss", "model_accepts_loss_kwargs", "_loss_shifts_labels"}}
        assert len(kept) == 5
        found.append(kept)
    assert found[0] == found[1]


def test_columns_that_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    view = get_peft_model(tiny.base("llama"), lora())
    seen: list[set[str]] = []
    view.register_forward_pre_hook(lambda _, __, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    data = rows(attention_mask=torch.ones(6, dtype=torch.long), comment=3, length=6)
    Trainer(view, arguments(tmp_path, max_steps=1), train_dataset=data).train()
    assert {"input_ids", "labels", "attention_mask"} <= seen[0]
    assert "comment" not in seen[0]


# ---------------------------------------------------------------- options


def test_neftune_noise_is_on_the_view_and_only_while_training(tmp_path: Path) -> None:
    base = tiny.base("llama")
    before = tiny.logits(base.train())
    view = get_peft_model(base, lora())
    heard: list[bool] = []

    class Listen(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            heard.append(torch.equal(tiny.logits(base), before) and hasattr(view.get_input_embeddings(), "neftune_noise_alpha"))

    plain = copied(_trained(get_peft_model(tiny.base("llama"), lora()), tmp_path))
    trained = copied(_trained(view, tmp_path, neftune_noise_alpha=5.0, callbacks=[Listen()]))
    assert heard == [True] * 6
    assert not hasattr(view.get_input_embeddings(), "neftune_noise_alpha")
    assert any(not torch.equal(trained[k], plain[k]) for k in trained)


def _trained(view: Any, folder: Path, callbacks: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    Trainer(fill(view), arguments(folder, **options), train_dataset=rows(), callbacks=callbacks).train()
    return view


def test_a_compiled_view_trains_saves_and_resumes(tmp_path: Path) -> None:
    torch.compiler.reset()
    options = {"torch_compile": True, "torch_compile_backend": "eager", "save_strategy": "steps", "save_steps": 3}
    eager = copied(_trained(get_peft_model(tiny.base("llama"), lora()), tmp_path / "eager"))
    compiled = _trained(get_peft_model(tiny.base("llama"), lora()), tmp_path, **options)
    for key, value in copied(compiled).items():
        assert torch.allclose(value, eager[key], atol=1e-5), key
    assert names(tmp_path / "checkpoint-3") == ADAPTER_FILES | TRAINER_FILES | {"README.md"}
    resumed = get_peft_model(tiny.base("llama"), lora())
    Trainer(resumed, arguments(tmp_path, **options), train_dataset=rows()).train(str(tmp_path / "checkpoint-3"))
    assert_equal(copied(resumed), copied(compiled))


def test_bf16_autocast_trains_float32_adapters(tmp_path: Path) -> None:
    base = tiny.base("llama")
    before = tiny.logits(base)
    view = get_peft_model(base, lora())
    trainer = Trainer(view, arguments(tmp_path, bf16=True, max_steps=12), train_dataset=rows(), eval_dataset=rows())
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start
    assert {p.dtype for p in view.parameters()} == {torch.float32}
    assert torch.equal(tiny.logits(base), before)


def test_a_bf16_base_keeps_float32_adapters(tmp_path: Path) -> None:
    base = tiny.base("llama").to(torch.bfloat16)
    view = get_peft_model(base, lora())
    Trainer(view, arguments(tmp_path), train_dataset=rows()).train()
    assert {p.dtype for p in tiny.adapter_parameters(view).values()} == {torch.float32}
    assert base.lm_head.weight.dtype == torch.bfloat16
    assert all(bool(p.any()) for p in copied(view).values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_trains_the_same(tmp_path: Path, reentrant: bool) -> None:
    plain = copied(_trained(get_peft_model(tiny.base("llama"), lora()), tmp_path))
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    base = tiny.base("llama")
    view = _trained(get_peft_model(base, lora()), tmp_path, **options)
    for key, value in copied(view).items():
        assert torch.allclose(value, plain[key], atol=1e-5), key
    assert not base.is_gradient_checkpointing
    assert base.config.use_cache


# ---------------------------------------------------------------- cards and the Hub


def test_the_card_keeps_the_adapters_metadata(tmp_path: Path) -> None:
    base = tiny.base("llama")
    base.config._name_or_path = "someone/tiny-llama"
    trainer = Trainer(get_peft_model(base, lora()), arguments(tmp_path), train_dataset=rows())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="mine", tags="fun", language="en")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in ("library_name: peft", "base_model: someone/tiny-llama", "- base_model:adapter:someone/tiny-llama", "- lora", "- fun"):
        assert line in card
    assert "# mine" in card and "Training hyperparameters" in card


def test_a_push_during_training_copies_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[set[str]] = []

    def upload_folder(folder_path: str, **_: Any) -> Any:
        sent.append(names(Path(folder_path)))
        return SimpleNamespace(done=lambda: True)

    view = get_peft_model(tiny.base("llama"), lora())
    trainer = Trainer(view, arguments(tmp_path, save_strategy="steps", save_steps=3), train_dataset=rows())
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload_folder))
    trainer.push_in_progress, trainer.hub_model_id = None, "someone/mine"
    trainer.train()
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-3"))
    assert {CONFIG_NAME, WEIGHTS_NAME, "training_args.bin"} <= sent[0]


# ---------------------------------------------------------------- the change to transformers, and its undoing


def test_teaching_is_undone_without_a_trace() -> None:
    glue.forget_trainer()
    before = {m: dict(vars(m)) for m in (transformers.trainer, transformers.trainer_utils)}
    view = get_peft_model(tiny.base("llama"), lora())
    assert transformers.trainer_utils._is_peft_model(view)
    assert not transformers.trainer_utils._is_peft_model(tiny.base("llama"))
    changed = {name for m, old in before.items() for name, value in vars(m).items() if value is not old.get(name)}
    assert changed <= {"is_peft_available", "PeftModel", "PeftMixedModel"}
    glue.forget_trainer()
    for module, old in before.items():
        assert vars(module) == old
    glue.teach_trainer()
    glue.teach_trainer()
    assert transformers.trainer_utils._is_peft_model(view)
