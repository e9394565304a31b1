"""LoRA with transformers' Trainer: two adapters, with dropout and without; save, load, switch, sum up, merge."""

import json
import tempfile

import torch
from common import ids, llama, report
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

folder = tempfile.mkdtemp()
data = [{"input_ids": row, "labels": row} for row in ids(12, 8)]


def logits(model):
    with torch.no_grad():
        return model.eval()(ids()).logits


def train(model, seed):
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        max_steps=6,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


set_seed(0)
config = LoraConfig(
    task_type=TaskType.CAUSAL_LM,
    r=4,
    lora_alpha=8,
    lora_dropout=0.1,
    target_modules=["q_proj", "v_proj", "down_proj"],
    bias="none",
)
model = get_peft_model(llama(), config)
start = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
model.print_trainable_parameters()
trainable = model.get_nb_trainable_parameters()
losses = train(model, 1)
changed = sum(not torch.equal(p, start[k]) for k, p in model.named_parameters() if p.requires_grad)
trained = logits(model)
model.save_pretrained(f"{folder}/first")
with open(f"{folder}/first/adapter_config.json") as file:
    saved = json.load(file)

# a second adapter on the same base
model.add_adapter(
    "second", LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
)
model.set_adapter("second")
losses_second = train(model, 2)
second = logits(model)
model.save_pretrained(folder, selected_adapters=["second"])
model.set_adapter("default")
with model.disable_adapter():
    disabled = logits(model)

# back from disk, on a fresh base
loaded = PeftModel.from_pretrained(llama(), f"{folder}/first", is_trainable=True)
reloaded = logits(loaded)
loaded.load_adapter(f"{folder}/second", adapter_name="second")
loaded.set_adapter("second")
switched = logits(loaded)
loaded.set_adapter("default")
loaded.add_weighted_adapter(["default", "second"], [0.7, 0.4], "both", combination_type="linear")
loaded.set_adapter("both")
summed = logits(loaded)
loaded.add_weighted_adapter(["default", "second"], [1.0, -0.5], "cat", combination_type="cat")
loaded.set_adapter("cat")
concatenated = logits(loaded)
loaded.delete_adapter("both")
loaded.set_adapter("default")
assert not loaded.active_adapters or loaded.active_adapter == "default"
names = sorted(loaded.peft_config)

loaded.merge_adapter()
merged_in_place = logits(loaded)
loaded.unmerge_adapter()
merged = loaded.merge_and_unload()
assert not isinstance(merged, PeftModel)
after = logits(merged)
merged.save_pretrained(f"{folder}/merged")
from_disk = logits(type(merged).from_pretrained(f"{folder}/merged"))

report(
    trainable=trainable,
    losses=losses,
    changed=changed,
    trained=trained,
    saved={
        k: sorted(saved[k]) if k == "target_modules" else saved[k]
        for k in ("r", "lora_alpha", "peft_type", "task_type", "target_modules")
    },
    losses_second=losses_second,
    second=second,
    disabled=disabled,
    reloaded=reloaded,
    switched=switched,
    summed=summed,
    concatenated=concatenated,
    names=names,
    merged_in_place=merged_in_place,
    merged=after,
    from_disk=from_disk,
)
