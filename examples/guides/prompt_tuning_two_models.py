# %% [markdown]
# # Prompt tuning: two models over one base
#
# A handful of *virtual tokens* is put before the input and trained; the model itself stays frozen. Here two such
# prompts are trained on two sets of texts, requests to play a role and quotations, and both are used over one base
# model. They take a few kilobytes each, and to change the model's task is to change one of them for the other.

# %%
"""Prompt tuning: two prompts on two sets of texts, over one base, loaded at once and switched."""

import common
import own_data
import stand_ins
import torch

from inlay import PeftModel, PromptTuningConfig, TaskType, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# With `--online`: Bloomz-560m and the two sets of the original guide. Offline: a small Bloom that has read four sorts
# of text for some seconds, the two of this guide among them, and so begins any text with one of the four at random.

# %%
if args.online:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("bigscience/bloomz-560m")
    base = AutoModelForCausalLM.from_pretrained("bigscience/bloomz-560m").to(common.DEVICE)
    texts = {
        "prompts": list(load_dataset("fka/awesome-chatgpt-prompts", split="train")["prompt"])[:150],
        "quotes": list(load_dataset("Abirate/english_quotes", split="train")["quote"])[:500],
    }
else:
    texts = {"prompts": own_data.prompts(args.data), "quotes": own_data.quotes(args.data)}
    other = [[text for text, _ in own_data.finance(args.data)], [text for text, _ in own_data.written_tweets(400)]]
    known = [texts["prompts"][:-24], texts["quotes"][:-24], *other]
    tokenizer = stand_ins.tokenizer_of([text for sort in known for text in sort])
    base = stand_ins.causal("bloom", known, tokenizer, 160 if args.short else 400, length=12)

LENGTH = 12  # tokens of each text: it is the beginning that shows what sort a text is of
VIRTUAL = {"prompts": 4, "quotes": 8}
STEPS = 40 if args.short else 120


def encode(text):
    """A text after <s>. Nothing comes before <s>, so it is not to be predicted."""
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]][:LENGTH]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [common.IGNORE, *ids[1:]]}


def collate(rows):
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": common.IGNORE}
    return common.pad(rows, fill)


rows = {name: [encode(text) for text in texts[name]] for name in texts}
held_out = {name: rows[name][-24:] for name in rows}
before = {name: common.mean_loss(base, held_out[name], collate) for name in rows}

# %% [markdown]
# ## Train the two
#
# Each is a view of the same base. `SAMPLE_VOCAB` starts the virtual tokens as the embeddings of random words.

# %%
for name, count in VIRTUAL.items():
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=count, prompt_tuning_init="SAMPLE_VOCAB"
    )
    view = get_peft_model(base, config)
    view.print_trainable_parameters()
    common.train(view, common.batches(rows[name][:-24], 8, collate), STEPS, 3e-2, name)
    after = common.mean_loss(view, held_out[name], collate)
    view.save_pretrained(args.out / name)
    print(f"held-out loss {after:.4f}; saved: {common.size_of(args.out / name)}")

# %% [markdown]
# ## Load both over the base, and switch
#
# One model, two adapters. Which one is active is one attribute.

# %%
both = PeftModel.from_pretrained(base, args.out / "prompts", adapter_name="prompts")
both.load_adapter(args.out / "quotes", adapter_name="quotes")
both.eval()


def write(model, count=6, seed=0):
    """Texts that the model begins by itself, from <s> alone."""
    torch.manual_seed(seed)
    start = torch.full((count, 1), tokenizer.bos_token_id, device=common.DEVICE)
    out = model.generate(
        input_ids=start, attention_mask=torch.ones_like(start), do_sample=True, top_k=20, max_new_tokens=LENGTH
    )
    return tokenizer.batch_decode(out, skip_special_tokens=True)


losses, samples = {}, [write(base)]
for name in ("prompts", "quotes"):
    both.set_adapter(name)
    losses[name] = {other: common.mean_loss(both, held_out[other], collate) for other in rows}
    samples.append(write(both))
assert losses["quotes"]["quotes"] == after, "the quotes' prompt, loaded again, must give the loss it had in training"
print("loaded again: the same loss to the last bit")

there, all_ = common.shared_with(base, both)
size = f"{common.bytes_of(base) / 1e6:.1f} MB"
print(f"{there} of the base's {all_} weight tensors ({size}) are the view's own, in memory once")

# %% [markdown]
# ## Before and after
#
# Each prompt lowers the loss on its own sort of text. The samples show it best: the base writes anything, a prompt
# one sort.

# %%
common.show("Texts begun by each", ["base", "with prompts", "with quotes"], zip(*samples, strict=True))
common.show(
    "Held-out loss per token, before and after",
    ["texts", "base", "adapted", "with the other prompt"],
    [(n, before[n], losses[n][n], losses[o][n]) for n, o in (("prompts", "quotes"), ("quotes", "prompts"))],
)
