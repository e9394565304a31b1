"""LoRA, low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W' = W + s B A. Its variants, and where it starts."""

from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.conv import LoraConv
from inlay.methods.lora.embedding import LoraEmbedding
from inlay.methods.lora.inits.corda import CordaConfig, preprocess_corda
from inlay.methods.lora.inits.eva import EvaConfig, get_eva_state_dict, initialize_lora_eva_weights
from inlay.methods.lora.inits.lora_ga import LoraGAConfig, preprocess_loraga
from inlay.methods.lora.linear import LoraLinear
from inlay.methods.lora.plain import as_plain_lora
from inlay.methods.lora.variants.alora import ALoraLinear
from inlay.methods.lora.variants.dora import DoraConv, DoraEmbedding, DoraLinear

__all__ = [
    "ALoraLinear",
    "CordaConfig",
    "DoraConv",
    "DoraEmbedding",
    "DoraLinear",
    "EvaConfig",
    "LoraConfig",
    "LoraConv",
    "LoraEmbedding",
    "LoraGAConfig",
    "LoraLinear",
    "as_plain_lora",
    "get_eva_state_dict",
    "initialize_lora_eva_weights",
    "preprocess_corda",
    "preprocess_loraga",
]
