"""LoRA files in a pipeline: several at once, their weights, fused, turned off, deleted, unloaded."""

import json
import os
import sys

import torch
from common import report
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from diffusion import latents, lora_file, pipeline
from safetensors.torch import load_file

out = sys.argv[1]
names = [lora_file(out, "a.safetensors", r=2, seed=1), lora_file(out, "b.safetensors", r=3, seed=2, text=False)]
pipe = pipeline()
found: dict = {"base": latents(pipe)}
adapters: dict = {}


def look(step: str, **options: object) -> None:
    """Notes what the pipeline makes, and what it says of its adapters."""
    found[step] = latents(pipe, **options)
    adapters[step] = [pipe.get_list_adapters(), pipe.get_active_adapters(), sorted(pipe.fused_loras)]


def refused(call: object, *args: object, **options: object) -> str:
    """The class of the error."""
    try:
        call(*args, **options)
    except Exception as error:
        return "ValueError" if isinstance(error, ValueError) else type(error).__name__
    return "nothing"


pipe.load_lora_weights(out, weight_name=names[0], adapter_name="a")
look("a")
look("half", cross_attention_kwargs={"scale": 0.5})
look("none", cross_attention_kwargs={"scale": 0.0})
look("whole again")
pipe.load_lora_weights(out, weight_name=names[1], adapter_name="b")
look("b")
twice = refused(pipe.load_lora_weights, out, weight_name=names[1], adapter_name="b")
unknown = refused(pipe.set_adapters, ["a", "nobody"])
look("after errors")

pipe.set_adapters(["a", "b"], adapter_weights=[0.7, 0.4])
look("both")
look("both, half", cross_attention_kwargs={"scale": 0.5})
pipe.set_adapters(["b", "a"], adapter_weights=0.9)
look("both, the other way round")
blocks = {"unet": {"down": 0.9, "mid": 0.3, "up": {"block_1": [0.6, 0.2]}}, "text_encoder": 0.5}
pipe.set_adapters(["a"], adapter_weights=[blocks])
look("by blocks")
pipe.set_adapters("a")
look("a at 1")

pipe.fuse_lora(adapter_names=["a"])
look("a fused")
pipe.unfuse_lora()
pipe.disable_lora()
look("disabled")
pipe.enable_lora()
look("enabled")

scale_lora_layers(pipe.unet, 0.25)
look("quarter")
unscale_lora_layers(pipe.unet, 0.25)
look("unscaled")

pipe.set_adapters(["a", "b"], adapter_weights=[0.7, 0.4])
pipe.fuse_lora(lora_scale=1.0, adapter_names=["a"])
look("a fused beside b")
pipe.unfuse_lora()
look("unfused")
pipe.fuse_lora()
look("both fused")
fused = [pipe.num_fused_loras, sorted(pipe.fused_loras)]
pipe.unfuse_lora()
look("both unfused")
pipe.set_lora_device(["a", "b"], "cpu")

pipe.delete_adapters("a")
look("a deleted")
pipe.set_adapters("b")
pipe.fuse_lora(lora_scale=0.5, safe_fusing=True)
look("b fused at half")
pipe.unload_lora_weights()
look("fused for good")
trace = [n for n, _ in pipe.unet.named_parameters() if "lora" in n or "adapters" in n or "base_layer" in n]

pipe = pipeline()
pipe.load_lora_weights(out, weight_name=names[0])
look("unnamed")
pipe.unet.save_lora_adapter(os.path.join(out, "unet"), adapter_name=pipe.get_active_adapters()[0])
saved = load_file(os.path.join(out, "unet", "pytorch_lora_weights.safetensors"))
pipe.unload_lora_weights()
look("unloaded")
pipe.unet.load_lora_adapter(os.path.join(out, "unet"), prefix=None, use_safetensors=True)
look("only the unet's")
pipe.unet.disable_adapters()
look("off")
pipe.unet.enable_adapters()
pipe.delete_adapters(pipe.get_active_adapters())
look("deleted")
report(
    **found,
    adapters=adapters,
    twice=twice,
    unknown=unknown,
    fused=fused,
    trace=trace,
    saved={key: float(t.double().sum()) for key, t in sorted(saved.items())},
    kinds=sorted({json.dumps(list(t.shape)) for t in saved.values()}),
    finite=all(bool(torch.isfinite(t).all()) for t in found.values()),
)
