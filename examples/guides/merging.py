# %% [markdown]
# # Merging: two LoRAs, alone, together and in the weights
#
# Two adapters are trained for two small bodies of knowledge, the capitals and the coins of invented countries. Then
# they are used one at a time, both together, in one batch each for its own row, and merged into a plain model.

# %%
"""Two LoRAs over one base: switched, active together, one per row of a batch, and merged."""

import common
import own_data
import stand_ins
import torch

from inlay import LoraConfig, PeftModel, TaskType, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# Offline: a small Llama that has read sentences of this form about other countries, so that it knows how they go but
# none of the facts. The facts are invented, and the same with `--online`, where the base is a real Llama.

# %%
facts = own_data.facts()
if args.online:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    NAME = "TinyLlama/TinyLlama_v1.1"
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    base = AutoModelForCausalLM.from_pretrained(NAME).to(common.DEVICE)
else:
    known = [[asked + told for asked, told in rows] for rows in own_data.facts(seed=1, count=400).values()]
    tokenizer = stand_ins.tokenizer_of([text for rows in known for text in rows], 400)
    base = stand_ins.causal("llama", known, tokenizer, 100 if args.short else 300, length=24)


def encode(fact):
    """A row of which only the answer is learnt."""
    asked = [tokenizer.bos_token_id, *tokenizer(fact[0], add_special_tokens=False)["input_ids"]]
    told = tokenizer(fact[0] + fact[1], add_special_tokens=False)["input_ids"][len(asked) - 1 :]
    told = [*told, tokenizer.eos_token_id]
    return {
        "input_ids": asked + told,
        "attention_mask": [1] * len(asked + told),
        "labels": [common.IGNORE] * len(asked) + told,
    }


def collate(rows):
    fill = {"input_ids": tokenizer.eos_token_id, "attention_mask": 0, "labels": common.IGNORE}
    return common.pad(rows, fill)


rows = {name: [encode(fact) for fact in facts[name]] for name in facts}


def losses(model):
    """The loss per token of the answers, for each of the two bodies of knowledge."""
    return [common.mean_loss(model, rows[name], collate) for name in facts]


before = losses(base)

# %% [markdown]
# ## Train the two
#
# Both are added to one view. `set_adapter` activates one and makes it the one that is trained.

# %%
config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=8, target_modules="all-linear")
view = get_peft_model(base, config, adapter_name="capital")
view.add_adapter("coin", config)
for name in facts:
    view.set_adapter(name)
    view.print_trainable_parameters()
    common.train(view, common.batches(rows[name], 16, collate), 80 if args.short else 300, 5e-3, name)

# %% [markdown]
# ## Save and load
#
# Several adapters of one view are saved side by side, each in its folder.

# %%
folder = args.out / "facts"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder / "capital", adapter_name="capital")
again.load_adapter(folder / "coin", adapter_name="coin")
again.eval()
for name in facts:
    view.set_adapter(name)
    again.set_adapter(name)
    assert common.mean_loss(again, rows[name], collate) == common.mean_loss(view, rows[name], collate)
print(f"saved: {common.size_of(folder)}; loaded again: the same losses")

# %% [markdown]
# ## Switch, combine, weigh, merge
#
# Active together, adapters add up: $W' = W + s_a B_a A_a + s_b B_b A_b$. They were not trained to be together: the
# sum knows more than the base of both, and less of each than its own adapter. `merge_adapter` writes that into copies
# of the weights of this view, and `unmerge_adapter` drops the copies, so that nothing is left of it.
# `merge_and_unload` returns a plain model. In all this the base stays as it was.

# %%
table = [("base", *before)]
for name in facts:
    again.set_adapter(name)
    table.append((f"with {name}", *losses(again)))

again.set_adapter(["capital", "coin"])
together = losses(again)
table.append(("both active", *together))

# Weighed: one new adapter, its rank the sum of the ranks, its change the weighted sum of theirs.
for share in (0.75, 0.5, 0.25):
    again.add_weighted_adapter(["capital", "coin"], [share, 1 - share], "weighed", combination_type="cat")
    again.set_adapter("weighed")
    table.append((f"weighed {share:g} : {1 - share:g}", *losses(again)))
    again.delete_adapter("weighed")
again.set_adapter(["capital", "coin"])

sample = common.on_device(collate(rows["coin"][:4]))
with torch.no_grad():
    active = again(**sample).logits
    again.merge_adapter()
    merged = again(**sample).logits
    again.unmerge_adapter()
    assert torch.equal(again(**sample).logits, active), "unmerging must leave nothing behind"
print(f"largest difference in a logit, merged or not: {(merged - active).abs().max():.1e}")

plain = again.merge_and_unload(adapter_names=["capital", "coin"])
assert type(plain) is type(base)
table.append(("merge_and_unload", *losses(plain)))

# one batch, each row with its own adapter
mixed = [name for name in ("capital", "coin") for _ in range(2)]
batch = common.on_device(collate([*rows["capital"][:2], *rows["coin"][:2]]))
with torch.no_grad():
    each = again(**batch, adapter_names=mixed).logits
    for name in facts:
        again.set_adapter(name)
        own = [i for i, other in enumerate(mixed) if other == name]
        torch.testing.assert_close(each[own], again(**batch).logits[own], rtol=1e-4, atol=1e-4)
print(f"one batch with {mixed}: each row as from its own adapter")

there, all_ = common.shared_with(base, again)
size = f"{common.bytes_of(base) / 1e6:.1f} MB"
print(f"{there} of the base's {all_} weight tensors ({size}) are the view's own, in memory once")

# %% [markdown]
# ## Before and after

# %%
assert losses(base) == before, "the base must answer as before"
common.show("Loss per token of the answers", ["model", *(f"{name}s" for name in facts)], table)
common.show(
    "With both adapters, before and after",
    ["measure", "base", "adapted"],
    [(f"loss, {name}s", before[i], together[i]) for i, name in enumerate(facts)],
)
