# %% [markdown]
# # Prefix tuning for conditional generation
#
# Prefix tuning trains keys and values of virtual tokens in every layer of the decoder. A T5 model is to answer a
# sentence of financial news with one word: positive, neutral or negative.

# %%
"""Prefix tuning of a T5 model: the sentiment of financial news, as generated text."""

import common
import own_data
import stand_ins
import torch

from inlay import PeftModel, PrefixTuningConfig, TaskType, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# Offline: a small T5 that has learnt two tasks on the training sentences, to say the first word (three times of four)
# and to say the sentiment. Nothing in its input tells which of them is wanted: that is for the prefix to say.

# %%
if args.online:
    from datasets import load_dataset
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("t5-large")
    base = AutoModelForSeq2SeqLM.from_pretrained("t5-large").to(common.DEVICE)
    parquet = "refs/convert/parquet"  # the set itself is a script, which datasets no longer runs
    news = load_dataset("financial_phrasebank", "sentences_allagree", split="train", revision=parquet).shuffle(seed=0)
    texts = [(row["sentence"], news.features["label"].names[row["label"]]) for row in news]
else:
    texts = own_data.finance(args.data)
    known = [(text, label) for text, label in texts[:-200]]
    first = [(text, text.split()[0]) for text, _ in known]
    tokenizer = stand_ins.tokenizer_of([part for pair in known for part in pair])
    base = stand_ins.t5(known + 3 * first, tokenizer, 250 if args.short else 1200)


def encode(pair):
    asked, told = tokenizer(pair[0], truncation=True, max_length=64)["input_ids"], tokenizer(pair[1])["input_ids"]
    end = [] if told[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
    return {"input_ids": asked, "attention_mask": [1] * len(asked), "labels": told + end}


def collate(rows):
    return common.pad(rows, {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": common.IGNORE})


held_out = texts[-200:][: 96 if args.short else 200]
rows, test = [encode(pair) for pair in texts[:-200]], [encode(pair) for pair in held_out]


@torch.no_grad()
def answers(model, size=48):
    """What the model says of each held-out sentence."""
    said = []
    for start in range(0, len(test), size):
        batch = common.on_device(collate(test[start : start + size]))
        out = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6, do_sample=False
        )
        said += [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
    return said


def accuracy(said):
    return sum(a == label for a, (_, label) in zip(said, held_out, strict=True)) / len(held_out)


base.eval()
before, loss_before = answers(base), common.mean_loss(base, test, collate)

# %% [markdown]
# ## Train

# %%
config = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=20)
view = get_peft_model(base, config)
view.print_trainable_parameters()
common.train(view, common.batches(rows, 16, collate), 100 if args.short else 300, 0.3, "prefix tuning")
after, loss_after = answers(view), common.mean_loss(view, test, collate)

# %% [markdown]
# ## Save and load

# %%
folder = args.out / "prefix-tuning"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder)
assert answers(again) == after and common.mean_loss(again, test, collate) == loss_after
print(f"saved: {common.size_of(folder)}; loaded again: the same answers")

# %% [markdown]
# ## Before and after

# %%
shown = [(text, label, before[i], after[i]) for i, (text, label) in enumerate(held_out[:5])]
common.show("Held-out sentences", ["sentence", "label", "base", "adapted"], shown)
assert answers(base) == before, "the base must answer as before"
common.show(
    "Held-out, before and after",
    ["measure", "base", "adapted"],
    [("accuracy", accuracy(before), accuracy(after)), ("loss per token", loss_before, loss_after)],
)
