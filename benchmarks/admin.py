"""What managing adapters costs: Inlay and peft side by side, in CPU time of one process.

    python benchmarks/admin.py [--repeat 5] [--many 50]

A Llama of 32 layers whose seven linear layers are targets (224 adapted modules), on the meta device for making a view
and with hidden size 64 for the rest. Medians; the last column is Inlay's share of peft's time. Prints one table.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inlay

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FIELDS: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 8, "target_modules": LINEARS}


def llama(hidden: int, device: str) -> LlamaForCausalLM:
    """A Llama of 32 layers."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    with torch.device(device):
        return LlamaForCausalLM(config)


def cpu(action: Callable[[], Any]) -> float:
    """Milliseconds of CPU time that `action` takes."""
    gc.collect()
    start = time.process_time()
    action()
    return 1000 * (time.process_time() - start)


def median(times: list[float]) -> float:
    """The middle of the measured times."""
    return statistics.median(times)


def make_view(library: Any, repeat: int, **kwargs: Any) -> float:
    """get_peft_model on a fresh meta-device Llama, the first time (imports, caches) not counted."""
    times = []
    for _ in range(repeat + 1):
        base, config = llama(1024, "meta"), library.LoraConfig(**FIELDS)
        times.append(cpu(lambda base=base, config=config: library.get_peft_model(base, config, **kwargs)))
    return median(times[1:])


def many(library: Any, folder: Path, count: int, repeat: int) -> dict[str, float]:
    """Loads `count` adapters into one model, then switches between them."""
    model = library.PeftModel.from_pretrained(llama(64, "cpu"), folder, adapter_name="a0")
    loads = [cpu(lambda i=i: model.load_adapter(folder, adapter_name=f"a{i}")) for i in range(1, count + 1)]
    switch = []
    for i in range(2 * repeat):
        switch.append(cpu(lambda i=i: [model.set_adapter(f"a{i % count}") for _ in range(3)]) / 3)
    with tempfile.TemporaryDirectory() as out:
        save = cpu(lambda: model.save_pretrained(out, selected_adapters=["a1"]))
    delete = cpu(lambda: model.delete_adapter(f"a{count}"))
    tenth = max(count // 10, 1)
    return {
        "load the first adapters": median(loads[:tenth]),
        f"load the {count}th": median(loads[-tenth:]),
        f"set_adapter with {count + 1} loaded": median(switch),
        f"save one of {count + 1}": save,
        f"delete one of {count + 1}": delete,
    }


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--many", type=int, default=50)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    title = "get_peft_model, meta, 224 targets"
    rows = {title: (make_view(peft, args.repeat, low_cpu_mem_usage=True), make_view(inlay, args.repeat))}
    with tempfile.TemporaryDirectory() as folder:
        peft.get_peft_model(llama(64, "cpu"), peft.LoraConfig(**FIELDS)).save_pretrained(folder)
        theirs, ours = (many(lib, Path(folder), args.many, args.repeat) for lib in (peft, inlay))
    rows.update({name: (theirs[name], ours[name]) for name in ours})

    print(f"CPU ms, median; torch {torch.__version__}, peft {peft.__version__}, {platform.machine()}, 1 thread")
    print(f"{'':36}{'peft':>10}{'inlay':>10}{'ratio':>10}")
    for name, (a, b) in rows.items():
        print(f"{name:36}{a:10.2f}{b:10.2f}{b / a:10.4f}")
    growth = ours[f"load the {args.many}th"] / ours["load the first adapters"]
    print(f"loading the {args.many}th adapter costs {growth:.2f} times the first (Inlay)")


if __name__ == "__main__":
    main()
