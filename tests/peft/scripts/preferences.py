"""TRL's DPOTrainer and KTOTrainer: the reference is the model without its adapter, or with the adapter as it was."""

import tempfile

import torch
from common import ids, llama, report
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from words import pairs, tokenizer

folder = tempfile.mkdtemp()
data = Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in pairs()])
config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
common = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def losses(trainer):
    kept = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    return [{k: entry[k] for k in kept if k in entry} for entry in trainer.state.log_history if "loss" in entry]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids()).logits


set_seed(0)
trainer = DPOTrainer(
    llama(), args=DPOConfig(folder, **common), train_dataset=data, processing_class=tokenizer(), peft_config=config
)
trainer.train()
fresh, fresh_logits = losses(trainer), logits(trainer.model)

# going on with an adapter that is trained: its start is the reference
with torch.no_grad():
    set_seed(0)
    model = get_peft_model(llama(), config)
    for p in model.parameters():
        if p.requires_grad:
            p += 0.1
trainer = DPOTrainer(model, args=DPOConfig(folder, **common), train_dataset=data, processing_class=tokenizer())
adapters = sorted(trainer.model.peft_config)
trainer.train()
trained, trained_logits = losses(trainer), logits(trainer.model)

rows = [
    {"prompt": row["prompt"], "completion": row[which], "label": which == "chosen"}
    for row in pairs()
    for which in ("chosen", "rejected")
]
set_seed(0)
trainer = KTOTrainer(
    llama(),
    args=KTOConfig(folder, **common),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer(),
    peft_config=config,
)
trainer.train()

report(
    fresh=fresh,
    fresh_logits=fresh_logits,
    adapters=adapters,
    trained=trained,
    trained_logits=trained_logits,
    kto=losses(trainer),
    kto_logits=logits(trainer.model),
)
