"""LoRA on a Llama in one process, under DDP and under FSDP2 (through accelerate): step time, memory, same result.

    torchrun --nproc-per-node 2 benchmarks/processes.py [--size 1b] [--batch 8] [--length 1024] [--out results.json]

CUDA and NCCL where there are devices, else the CPU and gloo. All ways train the same model from the same start on the
same global batch, which N processes share: rank 0 alone first, then all under DDP, then all under FSDP2. Their loss
curves and saved adapters must agree; the script exits with 1 if they do not. `--short` is for the test suite.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, PartialState
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from inlay import LoraConfig, get_peft_model

CUDA = torch.cuda.is_available()
RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if CUDA else torch.device("cpu")
WARM = 3
# width, width of the MLP, layers, heads, heads of keys and values, vocabulary
SIZES = {
    "tiny": (64, 128, 2, 4, 2, 256),
    "small": (512, 1536, 8, 8, 4, 8192),
    "1b": (2048, 8192, 16, 32, 8, 32768),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(args: argparse.Namespace) -> Any:
    """A view of a model with random weights, the same in every process."""
    width, inner, layers, heads, key_heads, vocab = SIZES[args.size]
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=key_heads, use_cache=False)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    with DEVICE:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))


def accelerator_for(mode: str) -> Accelerator | None:
    """What prepares the model for `mode`; None for one process."""
    if mode == "one":
        return None
    AcceleratorState._reset_state(reset_partial_state=True)
    if mode == "ddp":
        return Accelerator(cpu=not CUDA)
    if not CUDA:  # accelerate refuses to shard on the CPU: tell it that gloo joins devices
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    return Accelerator(fsdp_plugin=plugin)


def measure(mode: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains in one way and saves the adapter; times, losses, memory. With mode "one" only on rank 0."""
    gc.collect()  # what the mode before used
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(DEVICE)
    accelerator = accelerator_for(mode)
    rank, size = (RANK, SIZE) if accelerator else (0, 1)
    view = make(args)
    model, optimizer = view, torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=1e-3, eps=1e-6)
    if accelerator:
        model, optimizer = accelerator.prepare(view, optimizer)
    model.train()
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(SIZES[args.size][5], (args.batch, args.length), generator=generator)[rank::size].to(DEVICE)
    losses, times = [], []
    for _ in range(WARM + args.steps):
        wait(size)
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        (accelerator.backward if accelerator else torch.Tensor.backward)(loss)
        optimizer.step()
        optimizer.zero_grad()
        wait(size)
        times.append(time.perf_counter() - start)
        losses.append(loss.detach())
    curve = torch.stack(losses).float()
    if accelerator:
        curve = accelerator.reduce(curve, "mean")
    inner = accelerator.unwrap_model(model) if accelerator else view
    inner.save_pretrained(folder / mode, is_main_process=rank == 0)
    peak = torch.tensor(torch.cuda.max_memory_allocated(DEVICE) / 2**30 if CUDA else float("nan"), device=DEVICE)
    if size > 1:
        dist.all_reduce(peak, dist.ReduceOp.MAX)
    return {"losses": curve.tolist(), "step": statistics.median(times[WARM:]), "peak": float(peak)}


def wait(size: int) -> None:
    """Until this device, and with several processes all, have done what they were told."""
    if CUDA:
        torch.cuda.synchronize()
    if size > 1:
        dist.barrier()


def compare(results: dict[str, Any], folder: Path) -> None:
    """Adds to each mode's result how far its losses and its adapter are from one process's."""
    one = load_file(folder / "one" / "adapter_model.safetensors")
    norm = torch.sqrt(sum(v.float().square().sum() for k, v in one.items() if "lora_B" in k))  # B starts at 0
    for mode, found in results.items():
        own = load_file(folder / mode / "adapter_model.safetensors")
        assert own.keys() == one.keys(), mode
        far = torch.sqrt(sum((own[k] - one[k]).float().square().sum() for k in one))
        found["adapter"] = float(far / norm)
        found["loss"] = max(abs(a - b) for a, b in zip(found["losses"], results["one"]["losses"], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b" if CUDA else "tiny")
    parser.add_argument("--batch", type=int, default=8, help="rows of the global batch; a multiple of the processes")
    parser.add_argument("--length", type=int, default=1024 if CUDA else 64)
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after 3 that are not")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if CUDA else "float32")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--short", action="store_true", help="a tiny model, few steps")
    args = parser.parse_args()
    if args.short:
        args.size, args.length, args.steps = "tiny", 16, 3
    if args.batch % SIZE:
        parser.error(f"--batch {args.batch} is no multiple of {SIZE} processes")
    if CUDA:
        torch.cuda.set_device(DEVICE)
    if SIZE > 1 and not dist.is_initialized():
        dist.init_process_group("cuda:nccl,cpu:gloo" if CUDA else "gloo")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        results = {"one": measure("one", args, folder)} if RANK == 0 else {}
        wait(SIZE)
        for mode in ("ddp", "fsdp2") if SIZE > 1 else ():
            results[mode] = measure(mode, args, folder)
        agree = True
        if RANK == 0:
            compare(results, folder)
            # 16-bit sums depend on their order, and AdamW's first steps are of one length however small the gradient
            loose = args.dtype == "bfloat16"
            agree = all(r["loss"] < (3e-2 if loose else 1e-4) for r in results.values())
            agree = agree and all(r["adapter"] < (0.3 if loose else 1e-2) for r in results.values())
            report(results, args, agree)
        if SIZE > 1:
            dist.barrier()
            dist.destroy_process_group()
    return 0 if agree else 1


def report(results: dict[str, Any], args: argparse.Namespace, agree: bool) -> None:
    """Prints the table, and writes it if asked to."""
    where = torch.cuda.get_device_name() if CUDA else "CPU, gloo"
    print(f"{where}; Llama {args.size}, {args.dtype}; {args.batch} x {args.length} tokens per step")
    print(
        f"{'':6} {'processes':>9} {'ms/step':>9} {'tokens/s':>10} {'speed-up':>8} {'GiB/rank':>8} {'loss':>8} adapter"
    )
    for mode, r in results.items():
        speed, count = args.batch * args.length / r["step"], 1 if mode == "one" else SIZE
        print(
            f"{mode:6} {count:9} {1e3 * r['step']:9.1f} {speed:10.0f} {results['one']['step'] / r['step']:8.2f} "
            f"{r['peak']:8.2f} {r['loss']:8.1e} {r['adapter']:7.1e}"
        )
    curve = results["one"]["losses"]
    print(f"loss {curve[0]:.4f} -> {curve[-1]:.4f}; the processes {'agree' if agree else 'DISAGREE'} with one process")
    if args.out:
        args.out.write_text(
            json.dumps({"device": where, "args": vars(args), "results": results}, default=str, indent=1)
        )


if __name__ == "__main__":
    raise SystemExit(main())
