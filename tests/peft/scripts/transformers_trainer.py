"""transformers.Trainer: training, evaluating, predicting, going on from a checkpoint, the best one, cards, pushes.

Arguments: a folder to write to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from common import filled, llama, report
from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaForSequenceClassification, Trainer, TrainingArguments

FOLDER = Path(sys.argv[1])
TARGETS = ["q_proj", "v_proj", "down_proj"]


def rows(count: int, classes: int = 0) -> list[dict[str, Any]]:
    torch.manual_seed(3)
    made = [torch.randint(3, 48, (8,)) for _ in range(count)]
    return [{"input_ids": x, "labels": int(x[0]) % classes if classes else x} for x in made]


def arguments(name: str, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(FOLDER / name), **{**settings, **changes})


def trained(
    model: Any, name: str, classes: int = 0, resume: Any = None, **changes: Any
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer after training, and what it said."""
    args = arguments(name, **changes)
    trainer = Trainer(model, args, train_dataset=rows(12, classes), eval_dataset=rows(4, classes))
    trainer.train(resume_from_checkpoint=resume)
    logged = {
        key: [e[key] for e in trainer.state.log_history if key in e] for key in ("loss", "eval_loss", "grad_norm")
    }
    return trainer, logged


def values(model: Any) -> float:
    return sum(t.double().abs().sum() for t in get_peft_model_state_dict(model).values()).item()


def files(folder: Path) -> list[str]:
    known = ("adapter", "model", "config", "classifier")
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(known))


def views() -> dict[str, Any]:
    """A view: the best checkpoint, going on from one, predictions."""

    def view() -> Any:
        return filled(get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS)), 0.1)

    model = view()
    # the highest loss, so that what is loaded at the end is an early checkpoint
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer, found = trained(model, "view", **best, eval_steps=1, save_steps=1)
    found["best"] = Path(trainer.state.best_model_checkpoint).name
    found |= {"values": values(model), "files": files(FOLDER / "view" / "checkpoint-1")}
    found["after"] = trainer.evaluate()["eval_loss"]
    predicted = trainer.predict(rows(3))
    found["predicted"] = [predicted.metrics["test_loss"], float(predicted.predictions.sum())]
    straight, whole = trained(view(), "straight")
    resumed, rest = trained(view(), "straight", resume=str(FOLDER / "straight" / "checkpoint-4"))
    found["resumed"] = [values(straight.model), values(resumed.model), *rest["eval_loss"], *whole["eval_loss"]]
    found["steps"] = resumed.state.global_step
    return found


def noise() -> dict[str, Any]:
    """Label smoothing and NEFTune."""
    model = filled(get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS)), 0.1)
    trainer, found = trained(
        model, "noise", label_smoothing_factor=0.1, neftune_noise_alpha=5, gradient_checkpointing=True
    )
    found |= {"values": values(model), "after": trainer.evaluate()["eval_loss"]}
    return found


def heads() -> dict[str, Any]:
    """A classifier whose head is trained in full, and another method."""
    base = llama(LlamaForSequenceClassification, num_labels=3)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=TARGETS))
    trainer, found = trained(filled(model), "head", 3, load_best_model_at_end=True)
    found |= {"values": values(model), "accuracy": trainer.predict(rows(4, 3)).metrics["test_loss"]}
    config = IA3Config(task_type="SEQ_CLS", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = filled(get_peft_model(llama(LlamaForSequenceClassification, num_labels=3), config))
    found["ia3"] = trained(model, "ia3", 3)[1]
    return found


def in_place() -> dict[str, Any]:
    """`model.add_adapter`, then Trainer: what it saves is the adapter."""
    model = llama()
    model.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    trainer, found = trained(filled(model, 0.1), "in_place")
    found |= {"values": values(model), "files": files(FOLDER / "in_place" / "checkpoint-2")}
    found["predicted"] = trainer.predict(rows(3)).metrics["test_loss"]
    again = llama()
    again.load_adapter(str(FOLDER / "in_place" / "checkpoint-6"))
    found["again"] = values(again)
    try:
        trained(llama(), "in_place", resume=str(FOLDER / "in_place" / "checkpoint-4"))
        found["resumed"] = "accepted"
    except ValueError as error:
        found["resumed"] = str(error).split(str(FOLDER))[0]
    model = llama(LlamaForSequenceClassification, num_labels=3)
    model.add_adapter(LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["score"]))
    found["head"] = trained(filled(model), "head_in_place", 3)[1]
    return found


def card() -> dict[str, Any]:
    """The model card, and what is copied for a push."""
    import transformers.trainer

    pushed: list[str] = []

    class Api:
        def upload_folder(self, folder_path: str, **kwargs: Any) -> Any:
            pushed.extend(files(Path(folder_path)))

    transformers.trainer.hf_api = Api
    base = llama()
    base.config._name_or_path = "someone/base"
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS))
    trainer = Trainer(model, arguments("card", hub_strategy="every_save"), train_dataset=rows(4), eval_dataset=rows(4))
    trainer.hub_model_id, trainer.push_in_progress = "someone/something", None
    checkpoint = FOLDER / "card" / "checkpoint-1"
    model.save_pretrained(str(checkpoint))
    trainer._push_from_checkpoint(str(checkpoint))
    model.save_pretrained(str(FOLDER / "card"))
    trainer.create_model_card(model_name="mine")
    text = (FOLDER / "card" / "README.md").read_text()
    said = [line for line in ("library_name: peft", "base_model: someone/base", "# mine") if line in text]
    return {"pushed": pushed, "card": said}


if __name__ == "__main__":
    report(**{part.__name__: part() for part in (views, noise, heads, in_place, card)})
