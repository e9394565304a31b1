"""One training step with LoRA or DoRA: Inlay, peft, and the frozen base, interleaved in one process on one GPU.

    python benchmarks/lora_step.py [--layers 16] [--batch 4] [--length 2048] [--repeat 6] [--dora]

A Llama of Llama-3-8B's shape with random bfloat16 weights, LoRA r=16 on its seven linear layers, float32 adapters
unless an arm says otherwise. A step is forward, loss and backward; "body" leaves out head and loss. Times are medians
of CUDA events; memory is the peak above weights. The last columns are ratios to peft's default. Before timing, the
gradients of both libraries are compared with float64 on a small model. Prints one table.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import inlay

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(layers: int, small: bool = False) -> LlamaForCausalLM:
    """Llama-3-8B's shape, or a small one, with random weights."""
    config = LlamaConfig(
        hidden_size=512 if small else 4096,
        intermediate_size=1024 if small else 14336,
        num_hidden_layers=layers,
        num_attention_heads=8 if small else 32,
        num_key_value_heads=4 if small else 8,
        vocab_size=1000 if small else 128256,
        use_cache=False,
    )
    with torch.device("cuda"):
        return LlamaForCausalLM(config)


def view_of(library: Any, base: Any, dora: bool = False, **kwargs: Any) -> Any:
    """`base` with LoRA on all seven linears; peft changes a copy's modules in place, over the same weights."""
    config = library.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=LINEARS, use_dora=dora)
    if library is peft:
        base = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    return library.get_peft_model(base, config, **kwargs)


def step_of(model: Any, ids: torch.Tensor, body: bool) -> Callable[[], None]:
    """A function that runs forward, loss and backward once."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model

    def run() -> None:
        for p in model.parameters():
            p.grad = None
        if body:
            hidden = core.model(ids).last_hidden_state
            hidden.backward(torch.ones_like(hidden))
        else:
            model(input_ids=ids, labels=ids).loss.backward()

    return run


def measure(arms: dict[str, Callable[[], None]], repeat: int) -> dict[str, tuple[float, float]]:
    """name -> (median milliseconds, peak GiB above what was allocated), the arms taking turns."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    peaks: dict[str, float] = {}
    for turn in range(repeat + 2):
        for name, run in arms.items():
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if turn > 1:
                times[name].append(start.elapsed_time(end))
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return {name: (statistics.median(t), peaks[name]) for name, t in times.items()}


def check() -> None:
    """Relative error of both libraries' adapter gradients against float64, from the same adapter weights."""
    torch.manual_seed(0)
    base, ids = llama(2, small=True), torch.randint(0, 1000, (2, 64), device="cuda")
    ours, theirs = view_of(inlay, base), view_of(peft, base)
    exact = copy.deepcopy(ours).double()
    mine = {k: p for k, p in ours.named_parameters() if p.requires_grad}
    for key, p in mine.items():
        torch.nn.init.normal_(p, std=0.05)
        name = key.replace("adapters.default.lora_A", "lora_A.default.weight").replace(
            "adapters.default.lora_B", "lora_B.default.weight"
        )
        theirs.get_parameter("base_model.model." + name).data.copy_(p)
        exact.get_parameter(key).data.copy_(p)
    base.bfloat16()  # shared by the view; peft's copy has the same parameters
    for p in mine.values():
        p.data = p.data.float()
    for model in (ours, theirs, exact):
        model(input_ids=ids, labels=ids).loss.backward()
    errors: dict[str, list[float]] = {"inlay": [], "peft": []}
    for key, p in mine.items():
        name = key.replace("adapters.default.lora_A", "lora_A.default.weight").replace(
            "adapters.default.lora_B", "lora_B.default.weight"
        )
        want = exact.get_parameter(key).grad
        for who, got in (("inlay", p.grad), ("peft", theirs.get_parameter("base_model.model." + name).grad)):
            errors[who].append(float((got.double() - want).norm() / want.norm()))
    for who, found in errors.items():
        middle, worst = statistics.median(found), max(found)
        print(f"gradient error against float64, bf16 base: {who} median {middle:.1e}, max {worst:.1e}")


def main() -> None:
    """Checks, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=6)
    parser.add_argument("--dora", action="store_true", help="DoRA in both libraries")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}")
    check()

    torch.manual_seed(0)
    base = llama(args.layers).bfloat16()
    ids = torch.randint(0, 128256, (args.batch, args.length), device="cuda")
    frozen = copy.deepcopy(base, {id(p): p for p in base.parameters()}).requires_grad_(False)
    frozen.enable_input_require_grads()
    models = {
        "frozen base": frozen,
        "peft": view_of(peft, base, args.dora),
        "peft, bf16 adapters": view_of(peft, base, args.dora, autocast_adapter_dtype=False),
        "inlay": view_of(inlay, base, args.dora),
        "inlay, bf16 adapters": view_of(inlay, base, args.dora, autocast_adapter_dtype=False),
    }
    for body in (True, False):
        found = measure({n: step_of(m, ids, body) for n, m in models.items()}, args.repeat)
        ms, gib = found["peft"]
        print(f"\n{'body' if body else 'step'}{'':24}{'ms':>9}{'+ GiB':>9}{'time':>9}{'memory':>9}")
        for name, (t, m) in found.items():
            print(f"{name:28}{t:9.1f}{m:9.2f}{t / ms:9.3f}{m / gib:9.3f}")


if __name__ == "__main__":
    main()
