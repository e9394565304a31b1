"""Small models that stand in for the real ones offline: the same architecture, trained here for some seconds.

Only an adapter is trained in the guides, so that the model under it has to know something. A random one knows nothing;
these have seen a little related data, which each guide names. They are kept nowhere.
"""

import torch
from common import DEVICE, IGNORE, pad, train
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer_of(texts, size=1500):
    """A byte-level BPE tokenizer (Bloom's kind), trained on these texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL)


def rows_of(texts, tokenizer, length):
    """Texts as rows for a causal LM: each between <s> and </s>, cut to `length`."""
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id][:length] for ids in tokenizer(texts)["input_ids"]]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in rows]


def stream_of(rows, size, fill=None):
    """Batches without end of rows drawn at random."""
    fill = fill or {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    while True:
        yield pad([rows[i] for i in torch.randint(len(rows), (size,)).tolist()], fill)


def causal(kind, texts, tokenizer, steps, length=64, lr=3e-3):
    """A small Bloom or Llama that has read these texts."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    if kind == "bloom":
        base = BloomForCausalLM(BloomConfig(hidden_size=128, n_layer=3, n_head=4, **ids))
    else:
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        base = LlamaForCausalLM(LlamaConfig(**sizes, **ids))
    train(base.to(DEVICE), stream_of(rows_of(texts, tokenizer, length), 16), steps, lr, f"stand-in ({kind}), own training")
    return base


def t5(pairs, tokenizer, steps):
    """A small T5 that has learnt to map the first text of each pair to the second."""
    sizes = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2, "vocab_size": len(tokenizer)}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
    base = T5ForConditionalGeneration(T5Config(dropout_rate=0.0, **sizes, **ids))
    rows = [{**row, "labels": labels + [2]} for row, labels in _pairs(pairs, tokenizer)]
    train(base.to(DEVICE), stream_of(rows, 32), steps, 3e-3, "stand-in (T5), own training")
    return base


def _pairs(pairs, tokenizer):
    asked, told = zip(*pairs, strict=True)
    for ids, labels in zip(tokenizer(list(asked))["input_ids"], tokenizer(list(told))["input_ids"], strict=True):
        yield {"input_ids": ids, "attention_mask": [1] * len(ids)}, labels
