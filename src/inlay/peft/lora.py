"""Parts of peft's LoRA config that stand beside it."""

from __future__ import annotations

from dataclasses import dataclass

from inlay.checks import check_bool, check_choice, check_int


@dataclass
class LoftQConfig:
    """How LoftQ would quantise. `LoraConfig` says what is done here instead: `replace_lora_weights_loftq`."""

    loftq_bits: int = 4
    loftq_iter: int = 1

    def __post_init__(self) -> None:
        check_choice("loftq_bits", self.loftq_bits, (2, 4, 8))
        check_int("loftq_iter", self.loftq_iter, 1)


@dataclass
class LoraRuntimeConfig:
    """Settings of a run, which are not saved. An adapter computes where its layer does; there is nothing to offload."""

    ephemeral_gpu_offload: bool = False

    def __post_init__(self) -> None:
        check_bool("ephemeral_gpu_offload", self.ephemeral_gpu_offload)
