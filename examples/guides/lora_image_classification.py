# %% [markdown]
# # LoRA for image classification
#
# LoRA on the attention of a vision transformer. The classes are new, so that the classification head is trained in
# full: `modules_to_save` says so, and the head is saved with the adapter.

# %%
"""LoRA with Trainer: a ViT learns to tell two kinds of insects apart."""

import common
import own_data
import stand_ins
import torch
from transformers import Trainer, TrainingArguments

from inlay import LoraConfig, PeftModel, get_peft_model

args = common.settings(__doc__)

# %% [markdown]
# ## Model and data
#
# Offline: a small ViT that has learnt to tell four patterns (rows, columns, checks, none) apart, drawn by this
# script. The pictures are photographs of ants and bees where they are at hand (a small model trained for seconds
# cannot do well on them), else drawn ones.

# %%
if args.online:
    from datasets import load_dataset
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    NAME = "google/vit-base-patch16-224-in21k"
    food = load_dataset("food101", split="train[:5000]")
    names = food.features["label"].names
    processor = AutoImageProcessor.from_pretrained(NAME)
    base = AutoModelForImageClassification.from_pretrained(NAME, num_labels=len(names)).to(common.DEVICE)

    def transform(rows):
        pictures = processor([picture.convert("RGB") for picture in rows["image"]], return_tensors="pt")
        return {"pixel_values": pictures["pixel_values"], "labels": rows["label"]}

    parts = food.train_test_split(test_size=0.1, seed=0)
    rows, held_out = (parts[name].with_transform(transform) for name in ("train", "test"))
else:
    *parts, names = own_data.insects(args.data)
    patterns = [own_data.draw_pattern(i % 4, parts[0][0][0].shape[-1], seed=i) for i in range(400)]
    base = stand_ins.vit(patterns, 120 if args.short else 300, len(own_data.PATTERNS), names)
    rows, held_out = ([{"pixel_values": x, "labels": y} for x, y in part] for part in parts)


@torch.no_grad()
def accuracy(model):
    """The share of held-out pictures that are given their class."""
    model.eval()
    right = 0
    for start in range(0, len(held_out), 32):
        batch = common.stack([held_out[i] for i in range(start, min(start + 32, len(held_out)))])
        right += (
            model(pixel_values=batch["pixel_values"].to(common.DEVICE)).logits.argmax(-1).cpu() == batch["labels"]
        ).sum()
    return right.item() / len(held_out)


before = accuracy(base)

# %% [markdown]
# ## Train

# %%
config = LoraConfig(
    r=16,
    lora_alpha=16,
    target_modules=None,  # the default: query and value, whatever this release of transformers calls them
    lora_dropout=0.1,
    bias="none",
    modules_to_save=["classifier"],
)
view = get_peft_model(base, config)
view.print_trainable_parameters()
trainer = Trainer(
    model=view,
    args=TrainingArguments(
        output_dir=str(args.out / "image-classification-run"),
        per_device_train_batch_size=16,
        max_steps=100 if args.short else 400,
        learning_rate=5e-3,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    ),
    train_dataset=rows,
    data_collator=common.stack,
)
trainer.train()
after = accuracy(view)

# %% [markdown]
# ## Save and load

# %%
folder = args.out / "image-classification"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder)
assert accuracy(again) == after
print(f"saved: {common.size_of(folder)}; loaded again: the same accuracy")

# %% [markdown]
# ## Before and after
#
# The base has the head it came with, which has never seen these classes.

# %%
assert accuracy(base) == before, "the base must answer as before"
common.show(
    f"{len(held_out)} held-out pictures ({', '.join(names[:5])}), before and after",
    ["measure", "base", "adapted"],
    [("accuracy", before, after)],
)
