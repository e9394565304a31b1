"""TRL's GRPOTrainer and RLOOTrainer with `peft_config`: what is generated is scored, with a KL penalty."""

import tempfile

import torch
from common import ids, llama, report
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from words import prompts, tokenizer

config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
common = {
    "max_steps": 3,
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


def reward(completions, **kwargs):
    """Many different words."""
    return [float(len(set(text.split()))) for text in completions]


found = {}
for trainer_class, config_class in ((GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)):
    set_seed(0)
    trainer = trainer_class(
        llama(),
        reward_funcs=reward,
        args=config_class(tempfile.mkdtemp(), num_generations=2, max_completion_length=6, beta=0.1, **common),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in prompts()]),
        processing_class=tokenizer(),
        peft_config=config,
    )
    trainer.train()
    kept = ("loss", "reward", "kl", "grad_norm")
    history = [{k: e[k] for k in kept if k in e} for e in trainer.state.log_history if "loss" in e]
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=ids()).logits
    found[trainer_class.__name__] = {"history": history, "logits": logits}
report(**found)
