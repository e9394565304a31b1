"""LoRA, low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W' = W + s B A."""

from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.conv import LoraConv
from inlay.methods.lora.embedding import LoraEmbedding
from inlay.methods.lora.linear import LoraLinear

__all__ = ["LoraConfig", "LoraConv", "LoraEmbedding", "LoraLinear"]
