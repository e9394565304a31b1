"""LoRA files of other kinds: kohya's, DoRA, LoKr; swapped in place; layers cast; a transformer instead of a UNet."""

import os
import sys

import torch
from common import filled, report
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from diffusion import ALL_TEXT, CONV, LINEAR, latents, lora_file, pipeline, tensors, unet
from peft import LoHaConfig, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

out = sys.argv[1]
found: dict = {}
pipe = pipeline()


def write(name: str, state: dict) -> str:
    """Writes a file, returns its name."""
    save_file({key: t.contiguous() for key, t in state.items()}, os.path.join(out, name))
    return name


# kohya's names, one alpha per layer
state = {}
for i, (path, (a, b)) in enumerate(tensors(pipe.unet, [*LINEAR, *CONV], r=2, seed=4).items()):
    key = f"lora_unet_{path.replace('.', '_')}"
    state |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(1.0 + i % 3)}
for path, (a, b) in tensors(pipe.text_encoder, ALL_TEXT, r=4, seed=5).items():
    key = f"lora_te_text_model_{path.replace('.', '_')}"
    state |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(2.0)}
pipe.load_lora_weights(out, weight_name=write("kohya.safetensors", state), adapter_name="kohya")
found["kohya"] = latents(pipe)
config = pipe.unet.peft_config["kohya"]
found["patterns"] = [config.r, config.lora_alpha, len(config.rank_pattern), len(config.alpha_pattern)]
pipe.unload_lora_weights()

# DoRA
state = {}
for path, (a, b) in tensors(pipe.unet, LINEAR, r=2, seed=6).items():
    at = f"unet.{path}"
    norms = pipe.unet.get_submodule(path).weight.norm(dim=1)
    state |= {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b, f"{at}.lora_magnitude_vector": norms * 1.1}
pipe.load_lora_weights(out, weight_name=write("dora.safetensors", state), adapter_name="dora")
found["dora"] = latents(pipe)
pipe.fuse_lora()
found["dora fused"] = latents(pipe)
pipe.unfuse_lora()
pipe.unload_lora_weights()

# LoKr
made = torch.Generator().manual_seed(7)
state = {}
for path, module in pipe.unet.named_modules():
    if path.endswith("attn1.to_q"):
        rows, columns = module.weight.shape
        state[f"{path}.lokr_w1"] = torch.randn(4, 4, generator=made) * 0.3
        state[f"{path}.lokr_w2"] = torch.randn(rows // 4, columns // 4, generator=made) * 0.3
pipe.unet.load_lora_adapter(state, prefix=None, adapter_name="lokr")
found["lokr"] = latents(pipe)
found["lokr at"] = sorted(n for n, m in pipe.unet.named_modules() if isinstance(m, BaseTunerLayer))
pipe.unet.delete_adapters("lokr")
found["lokr gone"] = latents(pipe)

# LoHa is not read from files by diffusers, but added
plain = unet()
plain.add_adapter(LoHaConfig(r=2, alpha=2, target_modules=[*LINEAR, *CONV]))
filled(plain)
noisy = torch.randn(1, 4, 8, 8, generator=made)
words = torch.randn(1, 5, 16, generator=made)
found["loha"] = plain(noisy, 10, words).sample
plain.fuse_lora()
found["loha fused"] = plain(noisy, 10, words).sample

# swapped in place, of the same rank, then prepared for others
names = [
    lora_file(out, f"{r}-{seed}.safetensors", r, seed, text=False) for r, seed in ((2, 8), (2, 9), (4, 10), (3, 11))
]
pipe = pipeline()
pipe.load_lora_weights(out, weight_name=names[0], adapter_name="swap")
found["first"] = latents(pipe)
pipe.load_lora_weights(out, weight_name=names[1], adapter_name="swap", hotswap=True)
found["second"] = latents(pipe)
pipe.unload_lora_weights()
pipe.enable_lora_hotswap(target_rank=4)
pipe.load_lora_weights(out, weight_name=names[0], adapter_name="swap")
found["first again"] = latents(pipe)
pipe.load_lora_weights(out, weight_name=names[2], adapter_name="swap", hotswap=True)
found["of rank 4"] = latents(pipe)
pipe.load_lora_weights(out, weight_name=names[3], adapter_name="swap", hotswap=True)
found["of rank 3"] = latents(pipe)
try:
    pipe.load_lora_weights(out, weight_name=names[1], adapter_name="nobody", hotswap=True)
    found["swapped for nothing"] = True
except ValueError:
    found["swapped for nothing"] = False

# weights kept in 8 bits, computed in 16
cast = unet()
cast.load_lora_adapter(os.path.join(out, names[0]), prefix="unet", use_safetensors=True)
cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
found["cast"] = cast(noisy, 10, words).sample

# a transformer
torch.manual_seed(12)
flux = FluxTransformer2DModel(
    patch_size=1,
    in_channels=4,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=16,
    pooled_projection_dim=8,
    axes_dims_rope=(4, 4, 8),
)
noise = {
    "hidden_states": torch.randn(1, 4, 4, generator=made),
    "encoder_hidden_states": torch.randn(1, 3, 16, generator=made),
    "pooled_projections": torch.randn(1, 8, generator=made),
    "timestep": torch.tensor([0.5]),
    "img_ids": torch.zeros(4, 3),
    "txt_ids": torch.zeros(3, 3),
}
flux.add_adapter(
    LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k", "add_k_proj", "proj_mlp", "norm.linear"])
)
filled(flux)
found["flux"] = flux(**noise).sample
found["flux at half"] = flux(**noise, joint_attention_kwargs={"scale": 0.5}).sample
flux(**noise).sample.square().sum().backward()
found["flux gradients"] = sum(p.grad.square().sum() for p in flux.parameters() if p.requires_grad)
layers = get_peft_model_state_dict(flux)
FluxLoraLoaderMixin.save_lora_weights(
    os.path.join(out, "flux"),
    transformer_lora_layers=layers,
    transformer_lora_adapter_metadata=flux.peft_config["default"].to_dict(),
)
found["flux keys"] = sorted(load_file(os.path.join(out, "flux", "pytorch_lora_weights.safetensors")))
flux.delete_adapters("default")
found["flux without"] = flux(**noise).sample
states = FluxLoraLoaderMixin.lora_state_dict(os.path.join(out, "flux"), return_lora_metadata=True)
flux.load_lora_adapter(states[0], prefix="transformer", metadata=states[-1], adapter_name="again")
found["flux again"] = flux(**noise).sample
report(**found)
