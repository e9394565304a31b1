# %% [markdown]
# # P-tuning for sequence classification
#
# Do two sentences say the same? P-tuning puts virtual tokens before the pair, made by a small network that is trained
# with them; the encoder is frozen. The classification head is new, so it is trained too, and saved with the adapter.
# The network is not: once trained, only the virtual tokens that it makes are needed.

# %%
"""P-tuning of a RoBERTa model: are two sentences paraphrases?"""

import common
import own_data
import stand_ins
import torch

from inlay import PeftModel, PromptEncoderConfig, TaskType, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# Offline: a small RoBERTa encoder that has learnt which part of an event a second sentence tells differently (who,
# what was done, to what, or none), from pairs written by rules; its head for that is thrown away. Sentences of real
# news (MRPC) are read if they are at hand, but a model of this size does little better on them than to say yes
# always.

# %%
if args.online:
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("roberta-large")
    base = AutoModelForSequenceClassification.from_pretrained("roberta-large").to(common.DEVICE)
    mrpc = load_dataset("glue", "mrpc")
    pairs, held_out = (
        [(row["sentence1"], row["sentence2"], row["label"]) for row in mrpc[part]] for part in ("train", "validation")
    )
else:
    pairs, held_out = own_data.paraphrases(args.data)
    known = own_data.written_pairs(3000)
    tokenizer = stand_ins.tokenizer_of([text for pair in [*known, *pairs] for text in pair[:2]])


def encode(pair):
    ids = tokenizer(pair[0], pair[1], truncation=True, max_length=120)["input_ids"]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": pair[2]}


if not args.online:
    parts = [{**encode(pair), "labels": pair[3]} for pair in known]
    base = stand_ins.roberta(parts, tokenizer, 500 if args.short else 1500, labels=4)


def collate(rows):
    made = common.pad(
        [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows],
        {"input_ids": tokenizer.pad_token_id, "attention_mask": 0},
    )
    return {**made, "labels": torch.tensor([row["labels"] for row in rows])}


rows, test = [encode(pair) for pair in pairs], [encode(pair) for pair in held_out]


@torch.no_grad()
def measure(model, size=64):
    """(accuracy, F1 of "they say the same", loss) on the held-out pairs."""
    model.eval()
    said = []
    for start in range(0, len(test), size):
        batch = common.on_device(collate(test[start : start + size]))
        said += model(**batch).logits.argmax(-1).tolist()
    true = [row["labels"] for row in test]
    hits = sum(a == b == 1 for a, b in zip(said, true, strict=True))
    right = sum(a == b for a, b in zip(said, true, strict=True)) / len(true)
    return right, 2 * hits / max(1, sum(said) + sum(true)), common.mean_loss(model, test, collate, size)


before = measure(base)

# %% [markdown]
# ## Train

# %%
config = PromptEncoderConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=20, encoder_hidden_size=128)
view = get_peft_model(base, config)
view.print_trainable_parameters()
common.train(view, common.batches(rows, 32, collate), 150 if args.short else 600, 3e-3, "P-tuning")
after = measure(view)

# %% [markdown]
# ## Save and load

# %%
folder = args.out / "paraphrases"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder)
assert measure(again) == after
print(f"saved: {common.size_of(folder)}; loaded again: the same scores")

# %% [markdown]
# ## Before and after
#
# The base has the head it came with, which has never seen this task.

# %%
assert measure(base) == before, "the base must answer as before"
common.show(
    f"{len(test)} held-out pairs, before and after",
    ["measure", "base", "adapted"],
    [("accuracy", before[0], after[0]), ("F1", before[1], after[1]), ("loss", before[2], after[2])],
)
