"""Prompt tuning, P-tuning and prefix tuning with transformers' Trainer."""

import tempfile

import torch
from common import VOCAB, ids, llama, report
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptEncoderReparameterizationType,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_model,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

folder = tempfile.mkdtemp()
words = ["<pad>", "<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(VOCAB - 4)]
inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.save_pretrained(f"{folder}/tokenizer")

common = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": 4}
configs = {
    "random": PromptTuningConfig(prompt_tuning_init=PromptTuningInit.RANDOM, **common),
    "text": PromptTuningConfig(
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text="w1 w7 w3 w9 w2",
        tokenizer_name_or_path=f"{folder}/tokenizer",
        **common,
    ),
    "p_tuning": PromptEncoderConfig(encoder_hidden_size=12, **common),
    "p_tuning_lstm": PromptEncoderConfig(
        encoder_reparameterization_type=PromptEncoderReparameterizationType.LSTM, encoder_hidden_size=12, **common
    ),
    "prefix": PrefixTuningConfig(**common),
    "prefix_projected": PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=12, **common),
}
data = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids(12, 8)]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids(), attention_mask=torch.ones_like(ids())).logits


found = {}
for name, config in configs.items():
    set_seed(0)
    model = get_peft_model(llama(), config)
    model.print_trainable_parameters()
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        max_steps=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = logits(model)
    with torch.no_grad():
        tokens = model.generate(
            input_ids=ids(), attention_mask=torch.ones_like(ids()), max_new_tokens=5, do_sample=False
        )
    trainer.save_model(f"{folder}/{name}")
    loaded = PeftModel.from_pretrained(llama(), f"{folder}/{name}")
    found[name] = {
        "losses": losses,
        "trained": trained,
        "tokens": tokens,
        "loaded": logits(loaded),
        "trainable": model.get_nb_trainable_parameters(),
    }
report(**found)
