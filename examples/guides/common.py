"""What the guides share: the command line, the tables they end with, a training loop, and small measurements."""

import argparse
import os
import random
import sys
from pathlib import Path

if "--online" not in sys.argv:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported; nothing is looked up

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

IGNORE = -100  # the label that every loss skips
HERE = Path(__file__).parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def settings(doc, argv=None):
    """The options of a guide. In a notebook there is no command line: change the values of what this returns."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--online", action="store_true", help="models and data of the original guide, from the Hub")
    parser.add_argument("--short", action="store_true", help="fewer steps: some seconds on a CPU")
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data", help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/guides"), help="where adapters are saved")
    if argv is None and "ipykernel" in sys.modules:
        argv = []
    args = parser.parse_args(argv)
    random.seed(0)
    torch.manual_seed(0)
    return args


def show(title, header, rows):
    """A table. Numbers are cut to what can be compared by eye."""
    rows = list(rows)
    table = Table(show_lines=any(len(str(c)) > 40 for row in rows for c in row))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{cell:.3f}" if isinstance(cell, float) else str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"\n{title}", style="bold", highlight=False)
    console.print(table)


def size_of(folder):
    """What an adapter takes on disk, beside what its base does: ready to be printed."""
    return f"{sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) / 1024:.0f} kB in {folder}"


def bytes_of(model):
    """The bytes of a model's weights; tied ones count once."""
    return sum(p.numel() * p.element_size() for p in {p.data_ptr(): p for p in model.parameters()}.values())


def shared_with(base, view):
    """How many of the base's weights are in the view, as the very same memory: (shared, all)."""
    there = {p.data_ptr() for p in view.parameters()}
    return sum(p.data_ptr() in there for p in base.parameters()), sum(1 for _ in base.parameters())


def on_device(batch):
    """A batch, moved to where the models are."""
    return {name: value.to(DEVICE) for name, value in batch.items()}


def stack(examples):
    """Examples, dicts of tensors of equal shapes, as one batch."""
    return {name: torch.stack([torch.as_tensor(e[name]) for e in examples]) for name in examples[0]}


def pad(examples, fill):
    """Examples, dicts of lists of token ids, as one batch padded on the right.

    Args:
        fill: name -> what to pad with.
    """
    width = {name: max(len(e[name]) for e in examples) for name in examples[0]}
    return {
        name: torch.tensor([e[name] + [fill[name]] * (width[name] - len(e[name])) for e in examples]) for name in width
    }


def batches(examples, size, collate, seed=0):
    """Batches without end, in a new random order each time round."""
    order = random.Random(seed)
    while True:
        for start in range(0, len(examples) - size + 1, size):
            if start == 0:
                examples = order.sample(examples, len(examples))
            yield collate(examples[start : start + size])


def train(model, stream, steps, lr, tell=""):
    """AdamW on the parameters that require gradients, the learning rate falling linearly to zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    first = last = None
    for _ in range(steps):
        loss = model(**on_device(next(stream))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        first, last = first or loss.item(), loss.item() if last is None else 0.9 * last + 0.1 * loss.item()
    model.eval()
    if tell:
        print(f"{tell}: {steps} steps, loss {first:.2f} -> {last:.2f}")


@torch.no_grad()
def mean_loss(model, examples, collate, size=16):
    """The mean loss over examples; per token for language models."""
    model.eval()
    total = count = 0
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size])
        n = int((batch["labels"] != IGNORE).sum())
        total += model(**on_device(batch)).loss.item() * n
        count += n
    return total / count
