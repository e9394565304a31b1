"""`transformers.Trainer` with a view for its model: nothing but the adapter is trained, saved and restored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.trainer
import transformers.trainer_utils
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from inlay import PeftModel, get_peft_model
from inlay.errors import ConfigError
from inlay.hf import trainer as glue
from inlay.hf.callbacks import LoadBestAdapters
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME

from ..tiny import older
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
    options = {"max_steps": 8, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    whole = noisy(1)
    Trainer(whole, arguments(tmp_path, **options), train_dataset=rows(24)).train()
    if how == "newest":
        (tmp_path / "checkpoint-8").rename(tmp_path / "finished")
    torch.manual_seed(99)
    resumed = noisy(2)
    trainer = Trainer(resumed, arguments(tmp_path, **options), train_dataset=rows(24))
    trainer.train(resume_from_checkpoint=True if how == "newest" else str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 8
    assert_equal(copied(resumed), copied(whole))


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


def test_an_adapter_of_any_name_resumes(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    whole, resumed = (fill(get_peft_model(tiny.base("llama"), lora(), "sft"), seed) for seed in (1, 2))
    Trainer(whole, arguments(tmp_path, **options), train_dataset=rows()).train()
    assert names(tmp_path / "checkpoint-3") == TRAINER_FILES | {"README.md", "sft"}
    Trainer(resumed, arguments(tmp_path, **options), train_dataset=rows()).train(str(tmp_path / "checkpoint-3"))
    assert_equal(copied(resumed), copied(whole))


def two_adapters(active: str, **changes: Any) -> Any:
    view = get_peft_model(tiny.base("llama"), lora(**changes))
    view.add_adapter("other", lora(**changes))
    fill(view, 7)
    view.set_adapter(active)
    return view


@pytest.mark.skipif(older("transformers", "5.23"), reason="Trainer reads the sub-folders' adapters only")
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


class Keep(TrainerCallback):
    """Keeps the adapters as they were at each evaluation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(copied(model))


def evaluated(view: Any, args: Any, scores: list[float], *callbacks: TrainerCallback) -> Trainer:
    """Trains with evaluations that find these `scores`, one after the other."""
    left = iter(scores)
    options = {"train_dataset": rows(), "eval_dataset": rows(4), "callbacks": list(callbacks)}
    trainer = Trainer(view, args, compute_metrics=lambda _: {"score": next(left)}, **options)
    trainer.train()
    return trainer


BEST: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


@pytest.mark.parametrize("limit", [None, 1])
def test_the_best_adapter_is_loaded_at_the_end(tmp_path: Path, limit: int | None) -> None:
    keep, view = Keep(), get_peft_model(tiny.base("llama"), lora())
    trainer = evaluated(view, arguments(tmp_path, save_total_limit=limit, **BEST), [1.0, 3.0, 2.0], keep)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert_equal(copied(view), keep.seen[1])
    assert not torch.equal(*(next(iter(seen.values())) for seen in keep.seen[1:]))


def test_the_best_of_the_active_adapter_is_loaded_not_another_adapter(tmp_path: Path) -> None:
    keep, view = Keep(), two_adapters("other")
    evaluated(view, arguments(tmp_path, **BEST), [3.0, 2.0, 1.0], keep)
    assert_equal(copied(view), keep.seen[0])


@pytest.mark.parametrize("active", [["sft"], ["sft", "second"]])
def test_the_best_of_adapters_of_any_name_is_loaded_with_a_callback(tmp_path: Path, active: list[str]) -> None:
    view = get_peft_model(tiny.base("llama"), lora(), "sft")
    for name in active[1:]:
        view.add_adapter(name, lora())
    fill(view, 7).set_adapter(active)
    keep = Keep()
    evaluated(view, arguments(tmp_path, **BEST), [1.0, 3.0, 2.0], keep, LoadBestAdapters())
    assert not any(torch.equal(*pair) for pair in zip(keep.seen[1].values(), keep.seen[2].values(), strict=True))
    assert_equal(copied(view), keep.seen[1])


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


INFERRED = {"_signature_columns", "label_names", "can_return_loss", "model_accepts_loss_kwargs", "_loss_shifts_labels"}


@pytest.mark.parametrize("family", ["llama", "bloom", "t5", "vit"])
def test_columns_and_labels_are_those_of_the_plain_model(tmp_path: Path, family: str) -> None:
    found = []
    for model in (tiny.base(family), get_peft_model(tiny.base(family), lora(family))):
        trainer = Trainer(model, arguments(tmp_path))
        trainer._set_signature_columns_if_needed()
        assert set(vars(trainer)) >= INFERRED
        found.append({name: getattr(trainer, name) for name in INFERRED})
        found[-1]["_signature_columns"].sort()
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
            noisy = hasattr(view.get_input_embeddings(), "neftune_noise_alpha")
            heard.append(noisy and torch.equal(tiny.logits(base), before))

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


def test_sequences_are_generated_in_evaluation(tmp_path: Path) -> None:
    view = get_peft_model(tiny.base("t5"), lora("t5", task_type="SEQ_2_SEQ_LM"))
    args = arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=6)
    batch = tiny.batch("t5", rows=4)
    data = [{k: v[i] for k, v in batch.items()} for i in range(4)]
    trainer = Seq2SeqTrainer(fill(view), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    predicted = torch.from_numpy(trainer.predict(data).predictions)
    expected = view.generate(input_ids=batch["input_ids"], max_length=6)
    assert torch.equal(predicted[:, : expected.shape[1]], expected)


def test_a_view_of_a_plain_torch_model_is_saved_as_one(tmp_path: Path) -> None:
    """`teach_trainer` is called by hand here, unless a view of a transformers model was made before."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.last(torch.tanh(self.first(x)))[:, 0]
            return {"loss": (y - labels).square().mean(), "y": y}

    def made() -> Any:
        torch.manual_seed(0)
        return get_peft_model(Net(), lora(target_modules=["first"]))

    glue.teach_trainer()
    data = [{"x": torch.randn(4), "labels": torch.tensor(1.0), "comment": 0} for _ in range(8)]
    options = {"save_strategy": "steps", "save_steps": 3}
    whole, resumed = made(), made()
    Trainer(whole, arguments(tmp_path, **options), train_dataset=data).train()
    assert names(tmp_path / "checkpoint-3") == ADAPTER_FILES | TRAINER_FILES | {"README.md"}
    Trainer(resumed, arguments(tmp_path, **options), train_dataset=data).train(str(tmp_path / "checkpoint-3"))
    assert_equal(copied(resumed), copied(whole))


# ---------------------------------------------------------------- cards and the Hub


def test_the_card_keeps_the_adapters_metadata(tmp_path: Path) -> None:
    base = tiny.base("llama")
    base.config._name_or_path = "someone/tiny-llama"
    trainer = Trainer(get_peft_model(base, lora()), arguments(tmp_path), train_dataset=rows())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="mine", tags="fun", language="en")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft\n" in card and "base_model: someone/tiny-llama\n" in card
    assert {"- base_model:adapter:someone/tiny-llama", "- lora", "- fun"} <= set(card.splitlines())
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


@pytest.fixture
def untaught() -> Iterator[dict[ModuleType, dict[str, Any]]]:
    """transformers as it is without Inlay: module -> its globals."""
    glue.forget_trainer()
    glue.forgotten = False
    yield {m: dict(vars(m)) for m in (transformers.trainer, transformers.trainer_utils)}
    glue.teach_trainer()


def test_the_first_view_teaches_and_it_can_be_undone(untaught: dict[ModuleType, dict[str, Any]]) -> None:
    view = get_peft_model(tiny.base("llama"), lora())
    assert transformers.trainer_utils._is_peft_model(view)
    assert not transformers.trainer_utils._is_peft_model(tiny.base("llama"))
    changed = {k for m, old in untaught.items() for k, value in vars(m).items() if value is not old.get(k)}
    assert changed == {"is_peft_available", "PeftModel", "PeftMixedModel", "update_fsdp_plugin_peft"}
    glue.forget_trainer()
    for module, old in untaught.items():
        assert vars(module) == old
    get_peft_model(tiny.base("llama"), lora())
    assert not transformers.trainer_utils._is_peft_model(view)
    for _ in range(2):
        glue.teach_trainer()
        assert transformers.trainer_utils._is_peft_model(view)


def test_trainer_imported_after_the_first_view_is_taught_too(
    untaught: dict[ModuleType, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "transformers.trainer")
        view = get_peft_model(tiny.base("llama"), lora())
    assert transformers.trainer.is_peft_available is not transformers.trainer_utils.is_peft_available
    assert transformers.trainer_utils._is_peft_model(view)  # every Trainer asks this when it is made
    assert transformers.trainer.is_peft_available is transformers.trainer_utils.is_peft_available


def test_a_model_of_peft_stays_one(tmp_path: Path, untaught: dict[ModuleType, dict[str, Any]]) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(tiny.base("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    get_peft_model(tiny.base("llama"), lora())
    assert transformers.trainer_utils._is_peft_model(theirs)
    options = {"save_strategy": "steps", "save_steps": 3}
    Trainer(theirs, arguments(tmp_path, **options), train_dataset=rows()).train()
    assert "adapter_model.safetensors" in names(tmp_path / "checkpoint-3")
    Trainer(theirs, arguments(tmp_path, **options), train_dataset=rows()).train(str(tmp_path / "checkpoint-3"))


def test_fsdp1_needs_the_original_parameters() -> None:
    """Trainer would import peft here. Views need no policy of their own, as `test_distributed.py` shows."""
    view = get_peft_model(tiny.base("llama"), lora())
    plugin = SimpleNamespace(use_orig_params=True, auto_wrap_policy="theirs")
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    transformers.trainer.update_fsdp_plugin_peft(view, accelerator)
    assert plugin.auto_wrap_policy == "theirs"
    plugin.use_orig_params = False
    with pytest.raises(ConfigError, match="use_orig_params"):
        transformers.trainer.update_fsdp_plugin_peft(view, accelerator)
