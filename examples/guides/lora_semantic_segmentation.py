# %% [markdown]
# # LoRA for semantic segmentation
#
# Every pixel of a street scene gets a class. LoRA adapts the attention of a SegFormer encoder, and the decoding head,
# which must learn new classes, is trained in full and saved along. It has a batch norm: the view's has its own
# statistics.

# %%
"""LoRA with Trainer: a SegFormer learns to label every pixel of street scenes."""

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
# Offline: a small SegFormer that has learnt to name the colour of each pixel. The scenes are those of CamVid where
# they are at hand, else drawn ones.

# %%
if args.online:
    import numpy
    from datasets import load_dataset
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    NAME, COUNT = "nvidia/mit-b0", 150
    parquet = "refs/convert/parquet"  # the set itself is a script, which datasets no longer runs
    scenes = load_dataset("scene_parse_150", "scene_parsing", split="train[:150]", revision=parquet)
    names = [str(i) for i in range(COUNT)]
    processor = AutoImageProcessor.from_pretrained(NAME, do_reduce_labels=True)
    base = AutoModelForSemanticSegmentation.from_pretrained(NAME, num_labels=COUNT).to(common.DEVICE)

    def transform(rows):
        made = processor(
            [numpy.array(picture.convert("RGB")) for picture in rows["image"]],
            [numpy.array(classes) for classes in rows["annotation"]],
            return_tensors="pt",
        )
        return {"pixel_values": made["pixel_values"], "labels": made["labels"]}

    parts = scenes.train_test_split(test_size=0.1, seed=0)
    rows, held_out = (parts[name].with_transform(transform) for name in ("train", "test"))
else:
    *parts, names = own_data.streets(args.data)
    base = stand_ins.segformer(parts[0], 60 if args.short else 300, names)
    rows, held_out = ([{"pixel_values": x, "labels": y} for x, y in part] for part in parts)


@torch.no_grad()
def measure(model):
    """(mean over the classes of intersection / union, share of pixels that are right), where there is a label."""
    model.eval()
    met = torch.zeros(len(names), len(names))
    for start in range(0, len(held_out), 8):
        batch = common.stack([held_out[i] for i in range(start, min(start + 8, len(held_out)))])
        logits = model(pixel_values=batch["pixel_values"].to(common.DEVICE)).logits.cpu()
        said = torch.nn.functional.interpolate(logits, size=batch["labels"].shape[-2:], mode="bilinear").argmax(1)
        seen = batch["labels"] < len(names)
        pairs = batch["labels"][seen] * len(names) + said[seen]
        met += torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), -1)
    union = met.sum(0) + met.sum(1) - met.diag()
    present = met.sum(1) > 0
    return (met.diag()[present] / union[present]).mean().item(), (met.trace() / met.sum()).item()


before = measure(base)

# %% [markdown]
# ## Train

# %%
config = LoraConfig(
    r=32,
    lora_alpha=32,
    target_modules=None,  # the default: query and value, whatever this release of transformers calls them
    lora_dropout=0.1,
    bias="lora_only",
    modules_to_save=["decode_head"],
)
view = get_peft_model(base, config)
view.print_trainable_parameters()
trainer = Trainer(
    model=view,
    args=TrainingArguments(
        output_dir=str(args.out / "segmentation-run"),
        per_device_train_batch_size=4,
        max_steps=100 if args.short else 500,
        learning_rate=3e-3,
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
after = measure(view)

# %% [markdown]
# ## Save and load

# %%
folder = args.out / "segmentation"
view.save_pretrained(folder)
again = PeftModel.from_pretrained(base, folder)
assert measure(again) == after
print(f"saved: {common.size_of(folder)}; loaded again: the same scores")

# %% [markdown]
# ## Before and after
#
# The base has the head it came with, which has never seen these classes.

# %%
assert measure(base) == before, "the base must answer as before"
common.show(
    f"{len(held_out)} held-out scenes, {len(names)} classes, before and after",
    ["measure", "base", "adapted"],
    [("mean IoU", before[0], after[0]), ("pixel accuracy", before[1], after[1])],
)
