"""Tiny diffusion models that are the same in every process, and LoRA files for them. Nothing of Inlay's."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

logging.disable(logging.WARNING)  # diffusers says what a file has no keys for
warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of peft, about any second adapter

LINEAR = ["to_q", "to_k", "to_v", "to_out.0"]
CONV = ["proj_in", "conv1", "conv_shortcut"]  # 1x1, 3x3, 1x1
TEXT = ["q_proj", "v_proj", "fc1"]
ALL_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def unet() -> Any:
    """A UNet with cross-attention, linear layers, 1x1 and 3x3 convolutions."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def tokenizer() -> Any:
    """Letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt")
        with open(vocabulary, "w") as file:
            json.dump({word: i for i, word in enumerate(words)}, file)
        with open(merges, "w") as file:
            file.write("#version: 0.2\n")
        return CLIPTokenizer(vocabulary, merges, model_max_length=16)


def text_encoder() -> Any:
    """CLIP's, of two layers."""
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_factor=4.0,
    )
    return CLIPTextModel(config).eval()


def pipeline() -> Any:
    """Stable Diffusion, of these models."""
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8,),
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        sample_size=16,
    )
    made = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def latents(pipe: Any, **options: Any) -> Any:
    """What two steps make of a prompt and fixed noise: some numbers of it, of the order of 1."""
    noise = torch.Generator().manual_seed(3)
    made = pipe(
        "a cat", num_inference_steps=2, generator=noise, output_type="latent", height=8, width=8, **options
    ).images
    return made.flatten()[::8] / 8


def pair(module: torch.nn.Module, r: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of rank r for a linear layer or a convolution."""
    out, *rest = module.weight.shape
    spread = [1] * (len(rest) - 1)
    a = torch.randn(r, *rest, generator=generator) * 0.3
    return a, torch.randn(out, r, *spread, generator=generator) * 0.3


def tensors(model: torch.nn.Module, targets: list[str], r: int = 2, seed: int = 0) -> dict[str, Any]:
    """LoRA's factors for the layers whose path ends in one of `targets`: path -> (A, B)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: pair(module, r, generator)
        for path, module in model.named_modules()
        if any(path.endswith("." + name) for name in targets)
    }


def lora_file(folder: str, name: str, r: int = 2, seed: int = 0, text: bool = True) -> str:
    """Writes a LoRA file as diffusers does, without the help of peft; returns its name."""
    from safetensors.torch import save_file

    parts = {"unet": (unet(), [*LINEAR, *CONV])}
    if text:
        parts["text_encoder"] = (text_encoder(), TEXT)
    state = {}
    for prefix, (model, targets) in parts.items():
        for path, (a, b) in tensors(model, targets, r, seed).items():
            state[f"{prefix}.{path}.lora_A.weight"] = a
            state[f"{prefix}.{path}.lora_B.weight"] = b
    save_file(state, os.path.join(folder, name), metadata={"format": "pt"})
    return name
