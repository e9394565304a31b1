"""Small models that stand in for the real ones offline: the same architecture, trained here for some seconds.

Only an adapter is trained in the guides, so that the model under it has to know something. A random one knows nothing;
these have seen a little related data, which each guide names. They are kept nowhere.
"""

import random

import torch
from common import DEVICE, IGNORE, pad, stack, train
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer_of(texts, size=1000):
    """A byte-level BPE tokenizer (Bloom's kind), trained on these texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="$A", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL)


FILL = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}


def stream_of(rows, size, collate):
    """Batches without end of rows drawn at random."""
    while True:
        yield collate(random.choices(rows, k=size))


def causal(kind, sorts, tokenizer, steps, length):
    """A small Bloom or Llama that has read texts of several sorts.

    A row of its training holds three texts of one sort, each between <s> and </s> and cut to `length` tokens, for in
    what large models read like stands beside like. So it has learnt that what is before a text says of what sort it is.
    """
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    if kind == "bloom":
        base = BloomForCausalLM(BloomConfig(hidden_size=96, n_layer=2, n_head=4, **ids))
    else:
        sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
        base = LlamaForCausalLM(LlamaConfig(**sizes, **ids))
    coded = [[[1, *row, 2][:length] for row in tokenizer(list(texts))["input_ids"]] for texts in sorts]
    rows = []
    for _ in range(1000):
        tokens = [i for row in random.choices(random.choice(coded), k=3) for i in row]
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": tokens})
    stream = stream_of(rows, 16, lambda r: pad(r, FILL))
    train(base.to(DEVICE), stream, steps, 5e-3, f"the stand-in's own training ({kind})")
    return base


def t5(pairs, tokenizer, steps):
    """A small T5 that has learnt to answer the first text of each pair with the second."""
    sizes = {"d_model": 96, "d_kv": 24, "num_heads": 4, "d_ff": 192, "num_layers": 2, "vocab_size": len(tokenizer)}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
    base = T5ForConditionalGeneration(T5Config(dropout_rate=0.0, **sizes, **ids))
    asked, told = ([row[:48] for row in tokenizer(list(texts))["input_ids"]] for texts in zip(*pairs, strict=True))
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [*labels, 2]}
        for ids, labels in zip(asked, told, strict=True)
    ]
    train(base.to(DEVICE), stream_of(rows, 32, lambda r: pad(r, FILL)), steps, 4e-3, "the stand-in's own training (T5)")
    return base


def roberta(rows, tokenizer, steps, labels):
    """A small RoBERTa encoder that has learnt to sort these encoded rows, with a new head for two classes.

    Its positions are counted from 20, so that those are known at which a text stands after 20 virtual tokens.
    """
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    more = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    both = [
        RobertaForSequenceClassification(
            RobertaConfig(
                **sizes, **more, max_position_embeddings=160, num_labels=n, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
            )
        )
        for n in (labels, 2)
    ]  # fmt: skip
    fill = {"input_ids": 0, "attention_mask": 0}
    collate = lambda r: {  # noqa: E731
        **(made := pad([{k: e[k] for k in fill} for e in r], fill)),
        "position_ids": 21 + torch.arange(made["input_ids"].shape[1]).expand_as(made["input_ids"]),
        "labels": torch.tensor([e["labels"] for e in r]),
    }
    train(both[0].to(DEVICE), stream_of(rows, 48, collate), steps, 1e-3, "the stand-in's own training (RoBERTa)")
    both[1].roberta.load_state_dict(both[0].roberta.state_dict())
    return both[1].to(DEVICE)


def vit(pictures, steps, before, names):
    """A small ViT that has learnt `before` kinds of pictures, with a new head for the classes `names`."""
    size = pictures[0][0].shape[-1]
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    made = [
        ViTForImageClassification(ViTConfig(image_size=size, patch_size=8, num_labels=n, **sizes))
        for n in (before, len(names))
    ]
    rows = [{"pixel_values": x, "labels": y} for x, y in pictures]
    train(made[0].to(DEVICE), stream_of(rows, 32, stack), steps, 1e-3, "the stand-in's own training (ViT)")
    made[1].vit.load_state_dict(made[0].vit.state_dict())
    return made[1].to(DEVICE)


def segformer(pictures, steps, names):
    """A small SegFormer that has learnt to say which of 8 colours a pixel has, with a new head for `names`."""
    sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 48}
    made = [
        SegformerForSemanticSegmentation(SegformerConfig(num_labels=n, drop_path_rate=0.0, **sizes))
        for n in (8, len(names))
    ]
    bit = torch.tensor([1, 2, 4]).view(3, 1, 1)
    middle = torch.stack([x for x, _ in pictures]).mean(dim=(0, 2, 3)).view(3, 1, 1)
    rows = [{"pixel_values": x, "labels": ((x > middle) * bit).sum(0)} for x, _ in pictures]
    train(made[0].to(DEVICE), stream_of(rows, 8, stack), steps, 2e-3, "the stand-in's own training (SegFormer)")
    made[1].segformer.load_state_dict(made[0].segformer.state_dict())
    return made[1].to(DEVICE)
