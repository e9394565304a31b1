# %% [markdown]
# # Prompt tuning for causal language modelling
#
# Is this tweet a complaint? A causal language model answers by writing the label after `Label :`. Eight virtual
# tokens are trained; they start as the embeddings of a text that describes the task.

# %%
"""Prompt tuning of a Bloom model: is a tweet a complaint? The label is generated as text."""

import common
import own_data
import stand_ins
import torch

from inlay import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# Offline: a small Bloom that has read three sorts of notes on tweets, written by rules. Each has a tweet and then a
# label, which is the company's name, what the tweet ends with, or whether it complains. Read alone, a tweet does not
# say which label is wanted.

# %%
TASK = "Classify if the tweet is a complaint or not:"
if args.online:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    NAME = "bigscience/bloomz-560m"
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    base = AutoModelForCausalLM.from_pretrained(NAME).to(common.DEVICE)
    parquet = "refs/convert/parquet"  # the set itself is a script, which datasets no longer runs
    raft = load_dataset("ought/raft", "twitter_complaints", split="train", revision=parquet)
    names = [name.lower() for name in raft.features["Label"].names]
    tweets = [(row["Tweet text"], names[row["Label"]]) for row in raft]
else:
    tweets = own_data.tweets(args.data)
    known = own_data.written_tweets(1000)
    other = [(t, t.split()[0]) for t, _ in known], [(t, t.split()[-1]) for t, _ in known], known
    notes = [[f"{text} Label : {label}" for text, label in sort] for sort in other]
    tokenizer = stand_ins.tokenizer_of([*notes[0], *notes[2], TASK])
    base = stand_ins.causal("bloom", notes, tokenizer, 200 if args.short else 900, length=32)
    NAME = args.out / "tokenizer"  # the config names a tokenizer, for the text that the virtual tokens start as
    tokenizer.save_pretrained(NAME)


def encode(tweet):
    """(row to train on, question without its answer): only the answer is learnt."""
    asked = [tokenizer.bos_token_id, *tokenizer(f"{tweet[0]} Label :")["input_ids"]]
    told = [*tokenizer(" " + tweet[1])["input_ids"], tokenizer.eos_token_id]
    labels = [common.IGNORE] * len(asked) + told
    return {"input_ids": asked + told, "attention_mask": [1] * len(labels), "labels": labels}, asked


def collate(rows):
    return common.pad(rows, {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": common.IGNORE})


split = len(tweets) * 2 // 3
rows, held_out = [encode(tweet)[0] for tweet in tweets[:split]], tweets[split:][: 32 if args.short else 64]
test = [encode(tweet) for tweet in held_out]


@torch.no_grad()
def answers(model):
    """What the model writes after each held-out tweet."""
    said = []
    for _, asked in test:
        ids = torch.tensor([asked], device=common.DEVICE)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        said.append(tokenizer.decode(out[0, len(asked) :], skip_special_tokens=True).strip())
    return said


def measure(model):
    """(answers, share of right ones, loss of the right answers)."""
    said = answers(model)
    right = sum(a == label for a, (_, label) in zip(said, held_out, strict=True)) / len(held_out)
    return said, right, common.mean_loss(model, [row for row, _ in test], collate)


base.eval()
before = measure(base)

# %% [markdown]
# ## Train

# %%
config = PromptTuningConfig(
    task_type=TaskType.CAUSAL_LM,
    prompt_tuning_init=PromptTuningInit.TEXT,
    num_virtual_tokens=8,
    prompt_tuning_init_text=TASK,
    tokenizer_name_or_path=str(NAME),
)
view = get_peft_model(base, config)
view.print_trainable_parameters()
common.train(view, common.batches(rows, 8, collate), 60 if args.short else 300, 3e-2, "prompt tuning")
after = measure(view)

# %% [markdown]
# ## Save and load

# %%
folder = args.out / "tweet-complaints"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder)
assert measure(again) == after
print(f"saved: {common.size_of(folder)}; loaded again: the same answers and loss")

# %% [markdown]
# ## Before and after

# %%
shown = [(*held_out[i], before[0][i], after[0][i]) for i in range(5)]
common.show("Held-out tweets", ["tweet", "label", "base", "adapted"], shown)
assert common.mean_loss(base, [row for row, _ in test], collate) == before[2], "the base must answer as before"
common.show(
    f"{len(held_out)} held-out tweets, before and after",
    ["measure", "base", "adapted"],
    [("accuracy", before[1], after[1]), ("loss per token", before[2], after[2])],
)
