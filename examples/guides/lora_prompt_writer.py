# %% [markdown]
# # LoRA: a model that writes prompts
#
# LoRA adds a product of two thin matrices to the weights of chosen layers, here to the attention's fused query, key
# and value projection of a Bloom model: $W' = W + \frac{\alpha}{r} BA$. `bias="lora_only"` trains these layers'
# biases too. They belong to the adapter: without it, the base answers with its own.

# %%
"""LoRA with Trainer: a Bloom model learns to write prompts of the form "I want you to act as ..."."""

import common
import own_data
import stand_ins
import torch
from transformers import Trainer, TrainingArguments

from inlay import LoraConfig, PeftModel, TaskType, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# Offline: a small Bloom that has read news, tweets, quotations and the first half of the prompts, each cut to 24
# tokens.

# %%
if args.online:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("bigscience/bloomz-560m")
    base = AutoModelForCausalLM.from_pretrained("bigscience/bloomz-560m").to(common.DEVICE)
    texts = list(load_dataset("fka/awesome-chatgpt-prompts", split="train")["prompt"])
else:
    texts = own_data.prompts(args.data)
    other = [text for text, _ in own_data.finance(args.data)], [text for text, _ in own_data.written_tweets(400)]
    known = [texts[: len(texts) // 2], own_data.quotes(args.data), *other]
    tokenizer = stand_ins.tokenizer_of([*texts[:-24], *(text for sort in known for text in sort)])
    base = stand_ins.causal("bloom", known, tokenizer, 120 if args.short else 300, length=24)

LENGTH = 24


def encode(text):
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]][:LENGTH]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [common.IGNORE, *ids[1:]]}


def collate(rows):
    return common.pad(rows, {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": common.IGNORE})


rows = [encode(text) for text in texts]
rows, held_out = rows[:-24], rows[-24:]
before = common.mean_loss(base, held_out, collate)

# %% [markdown]
# ## Train
#
# The view is a `BloomForCausalLM`, and Trainer takes it as one.

# %%
config = LoraConfig(
    task_type=TaskType.CAUSAL_LM,
    r=4,
    lora_alpha=16,
    target_modules=["query_key_value"],
    lora_dropout=0.05,
    bias="lora_only",
)
view = get_peft_model(base, config)
view.print_trainable_parameters()
trainer = Trainer(
    model=view,
    args=TrainingArguments(
        output_dir=str(args.out / "prompt-writer-run"),
        per_device_train_batch_size=8,
        max_steps=120 if args.short else 300,
        learning_rate=1e-2,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    ),
    train_dataset=rows,
    data_collator=collate,
)
trainer.train()
after = common.mean_loss(view, held_out, collate)

# %% [markdown]
# ## Save and load

# %%
folder = args.out / "prompt-writer"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder)
assert common.mean_loss(again, held_out, collate) == after
print(f"saved: {common.size_of(folder)}; loaded again: the same loss to the last bit")

# %% [markdown]
# ## Before and after


# %%
def write(model, count=5):
    torch.manual_seed(0)
    start = torch.full((count, 1), tokenizer.bos_token_id, device=common.DEVICE)
    out = model.generate(
        input_ids=start, attention_mask=torch.ones_like(start), do_sample=True, top_k=20, max_new_tokens=LENGTH
    )
    return tokenizer.batch_decode(out, skip_special_tokens=True)


common.show("Texts begun by each", ["base", "adapted"], zip(write(base), write(again), strict=True))
assert common.mean_loss(base, held_out, collate) == before, "the base must answer as before"
common.show("Held-out, before and after", ["measure", "base", "adapted"], [("loss per token", before, after)])
