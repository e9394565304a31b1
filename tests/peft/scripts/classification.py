"""Sequence classification: the head is trained and saved along; and a ViT with `modules_to_save`."""

import contextlib
import io
import tempfile

import torch
from common import ids, llama, report
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

folder = tempfile.mkdtemp()


def text_model():
    return llama(LlamaForSequenceClassification, num_labels=3)


def vit():
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))


def rate(outputs):
    logits, labels = outputs
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def images(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator)


def run(name, make, head, config, data, inputs):
    set_seed(0)
    model = get_peft_model(make(), config)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        model.print_trainable_parameters()
    args = TrainingArguments(
        f"{folder}/{name}",
        remove_unused_columns=False,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        label_names=["labels"],
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data[:4], compute_metrics=rate)
    trainer.train()
    model.save_pretrained(f"{folder}/{name}-final")
    kept = sorted(load_file(f"{folder}/{name}-final/adapter_model.safetensors"))
    read = PeftConfig.from_pretrained(f"{folder}/{name}-final")
    loaded = PeftModel.from_pretrained(make(), f"{folder}/{name}-final").eval()
    with torch.no_grad():
        trained, again = model.eval()(**inputs).logits, loaded(**inputs).logits
    history = [{k: e[k] for k in ("loss", "eval_loss", "eval_accuracy") if k in e} for e in trainer.state.log_history]
    return {
        "printed": printed.getvalue(),
        "history": history,
        "keys": kept,
        "has_head": head in read.modules_to_save,
        "type": read.peft_type,
        "logits": trained,
        "loaded": again,
    }


rows = [{"input_ids": row, "labels": i % 3} for i, row in enumerate(ids(8, 6))]
pixels = [{"pixel_values": x, "labels": i % 3} for i, x in enumerate(images(8))]
report(
    text=run(
        "text", text_model, "score", LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8), rows, {"input_ids": ids()}
    ),
    vit=run(
        "vit",
        vit,
        "classifier",
        LoraConfig(
            r=4,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj"],
            lora_dropout=0.1,
            bias="none",
            modules_to_save=["classifier"],
        ),
        pixels,
        {"pixel_values": images(2)},
    ),
)
