"""Trains LoRA in a UNet and its text encoder as diffusers' example scripts do, and saves it as they do."""

import os
import sys

import torch
from common import filled, report
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata, _set_state_dict_into_text_encoder, cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from diffusion import LINEAR, TEXT, latents, pipeline, text_encoder, unet
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

out = sys.argv[1]
denoiser, encoder = unet(), text_encoder()
denoiser.requires_grad_(False)
encoder.requires_grad_(False)
config = LoraConfig(r=2, lora_alpha=4, init_lora_weights="gaussian", target_modules=[*LINEAR, "conv1"])
denoiser.add_adapter(config)
encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=TEXT))
cast_training_params([denoiser, encoder])
filled(denoiser)
filled(encoder)

params = [p for model in (denoiser, encoder) for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(params, lr=1e-2)
scheduler = DDPMScheduler()
denoiser.train()
encoder.train()
losses = []
made = torch.Generator().manual_seed(0)
for _ in range(3):
    images, noise = (torch.randn(2, 4, 8, 8, generator=made) for _ in range(2))
    steps = torch.tensor([3, 700])
    noisy = scheduler.add_noise(images, noise, steps)
    words = encoder(torch.tensor([[0, 5, 8, 1], [0, 20, 1, 1]]))[0]
    loss = torch.nn.functional.mse_loss(denoiser(noisy, steps, words).sample, noise)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

StableDiffusionPipeline.save_lora_weights(
    save_directory=out,
    unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser)),
    text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(encoder)),
    safe_serialization=True,
    **_collate_lora_metadata({"unet": denoiser, "text_encoder": encoder}),
)
with safe_open(os.path.join(out, "pytorch_lora_weights.safetensors"), "pt") as file:
    saved = {key: file.get_tensor(key) for key in sorted(file.keys())}
    metadata = dict(file.metadata())

# resuming, as the scripts' load_model_hook does it
states = StableDiffusionPipeline.lora_state_dict(out)
lora, alphas = states[0], states[1]
again, encoder_again = unet(), text_encoder()
again.add_adapter(config)
encoder_again.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=TEXT))
own = convert_unet_state_dict_to_peft({k.replace("unet.", ""): v for k, v in lora.items() if k.startswith("unet.")})
incompatible = set_peft_model_state_dict(again, own, adapter_name="default")
_set_state_dict_into_text_encoder(lora, prefix="text_encoder.", text_encoder=encoder_again)
resumed = get_peft_model_state_dict(again)

# and using it
pipe = pipeline()
before = latents(pipe)
pipe.load_lora_weights(out)
report(
    losses=losses,
    trained=len(params),
    numbers=sum(p.numel() for p in params),
    keys=list(saved),
    values=[t.flatten()[::7] for t in saved.values()],
    metadata=metadata,
    unexpected=incompatible.unexpected_keys,
    resumed=all(torch.equal(resumed[k], t) for k, t in get_peft_model_state_dict(denoiser).items()),
    resumed_text=all(
        torch.equal(t, get_peft_model_state_dict(encoder)[k])
        for k, t in get_peft_model_state_dict(encoder_again).items()
    ),
    before=before,
    after=latents(pipe),
    adapters=pipe.get_list_adapters(),
)
