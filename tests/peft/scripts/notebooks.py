"""Two notebooks of peft's users: two prompts on one bloomz, and Whisper with LoRA on a prepared base."""

import tempfile

import torch
from common import VOCAB, ids, report
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DataCollatorForLanguageModeling,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
    set_seed,
)
from words import tokenizer

folder = tempfile.mkdtemp()
quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---------------------------------------------------------------- prompt tuning: two tasks, one foundational model


def bloom():
    torch.manual_seed(3)
    return BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, pad_token_id=0, initializer_range=0.3)
    ).eval()


foundation = bloom()
words = tokenizer()
inputs = {"input_ids": ids(1, 5), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


def answer(model):
    return model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=6,
        repetition_penalty=1.5,
        early_stopping=False,
        eos_token_id=words.eos_token_id,
    )


before = answer(foundation)
prompt_config = PromptTuningConfig(
    task_type=TaskType.CAUSAL_LM,
    prompt_tuning_init=PromptTuningInit.RANDOM,
    num_virtual_tokens=4,
    tokenizer_name_or_path="unused",
)
found = {}
for name, shift in (("prompts", 0), ("quotes", 5)):
    set_seed(0)
    model = get_peft_model(foundation, prompt_config)
    args = TrainingArguments(f"{folder}/{name}", auto_find_batch_size=True, learning_rate=0.0035, max_steps=4, **quiet)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=[
            {"input_ids": (row + shift) % VOCAB, "attention_mask": torch.ones_like(row)} for row in ids(8, 6)
        ],
        data_collator=DataCollatorForLanguageModeling(words, mlm=False),
    )
    trainer.train()
    trainer.model.save_pretrained(f"{folder}/{name}")
    found[name] = losses(trainer)
loaded = PeftModel.from_pretrained(foundation, f"{folder}/prompts", is_trainable=False)
answers = {"prompts": answer(loaded)}
loaded.load_adapter(f"{folder}/quotes", adapter_name="quotes")
loaded.set_adapter("quotes")
answers["quotes"] = answer(loaded)

# ---------------------------------------------------------------- Whisper, as on 8 bits


def whisper():
    torch.manual_seed(3)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"max_source_positions": 8, "max_target_positions": 16, "num_mel_bins": 8}
    own = WhisperConfig(vocab_size=VOCAB, **sizes, **heads, **tokens, **lengths, suppress_tokens=None)
    return WhisperForConditionalGeneration(own).eval()


set_seed(0)
model = whisper()
model.config.forced_decoder_ids = None
model = prepare_model_for_kbit_training(model)
model.model.encoder.conv1.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
model = get_peft_model(
    model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, bias="none")
)
model.print_trainable_parameters()
sounds = torch.randn(6, 8, 16, generator=torch.Generator().manual_seed(1))
args = Seq2SeqTrainingArguments(
    f"{folder}/whisper",
    per_device_train_batch_size=2,
    learning_rate=1e-2,
    max_steps=3,
    remove_unused_columns=False,
    label_names=["labels"],
    save_strategy="no",
    **quiet,
)
rows = [{"input_features": sound, "labels": row} for sound, row in zip(sounds, ids(6, 5), strict=True)]
trainer = Seq2SeqTrainer(args=args, model=model, train_dataset=rows)
model.config.use_cache = False
trainer.train()
model.save_pretrained(f"{folder}/whisper")
read = PeftConfig.from_pretrained(f"{folder}/whisper")
again = PeftModel.from_pretrained(whisper(), f"{folder}/whisper").eval()
with torch.no_grad():
    heard = again(input_features=sounds[:2], labels=ids(2, 5)).logits

report(before=before, losses=found, answers=answers, whisper=losses(trainer), heard=heard, r=read.r)
