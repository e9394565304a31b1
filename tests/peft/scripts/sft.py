"""TRL's SFTTrainer with `peft_config`: training, resuming, and on a model that has an adapter already."""

import os
import tempfile

import torch
from common import ids, llama, report
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed
from trl import SFTConfig, SFTTrainer
from words import prompts, tokenizer

folder = tempfile.mkdtemp()
data = Dataset.from_list(prompts())


def config(**changes):
    fields = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**fields, **changes})


def arguments(name, **changes):
    common = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return SFTConfig(f"{folder}/{name}", **{**common, **changes})


def losses(trainer):
    return [
        {k: entry[k] for k in ("loss", "mean_token_accuracy", "entropy") if k in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids()).logits


set_seed(0)
trainer = SFTTrainer(
    llama(), arguments("plain"), train_dataset=data, processing_class=tokenizer(), peft_config=config()
)
assert isinstance(trainer.model, PeftModel)
trainable = trainer.model.get_nb_trainable_parameters()
trainer.train()
plain, trained = losses(trainer), logits(trainer.model)
trainer.save_model(f"{folder}/adapter")
files = sorted(f for f in os.listdir(f"{folder}/adapter") if f.startswith("adapter"))
loaded = logits(PeftModel.from_pretrained(llama(), f"{folder}/adapter"))

set_seed(0)
again = SFTTrainer(llama(), arguments("plain"), train_dataset=data, processing_class=tokenizer(), peft_config=config())
again.train(resume_from_checkpoint=f"{folder}/plain/checkpoint-3")
resumed = logits(again.model)

# a model that has its adapter already, embeddings in full, packed rows, and checkpointing off
set_seed(0)
model = get_peft_model(llama(), config(modules_to_save=["embed_tokens"], target_modules=["q_proj", "v_proj"]))
trainer = SFTTrainer(
    model,
    arguments("given", gradient_checkpointing=False, save_strategy="no", packing=True, max_length=16),
    train_dataset=data,
    processing_class=tokenizer(),
)
trainer.train()
given = losses(trainer)

report(
    trainable=trainable,
    plain=plain,
    trained=trained,
    files=files,
    loaded=loaded,
    resumed=resumed,
    given=given,
    merged=logits(trainer.model.merge_and_unload()),
)
