"""What prompt methods need of transformers: its caches, and tokenizers by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inlay.core.host import is_encoder_decoder


def fill_cache(cache: Any, host: Any, layers: list[tuple[Tensor, Tensor]]) -> Any:
    """`cache` (a new one if None) with each layer's keys and values put in, (b, heads, P, d) both.

    Args:
        host: the decoder or the whole backbone that will be given the cache.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    if cache is None and is_encoder_decoder(host):  # the encoder's keys are cached apart
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    elif cache is None:
        cache = DynamicCache(config=host.config)
    own = getattr(cache, "self_attention_cache", cache)
    for index, (keys, values) in enumerate(layers):
        own.update(keys, values, index)
    return cache


def token_ids(tokenizer_name_or_path: str, text: str, **kwargs: Any) -> list[int]:
    """The tokens of `text`, special ones included as the tokenizer adds them. No code from elsewhere is run."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name_or_path, trust_remote_code=False, **kwargs)
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids
