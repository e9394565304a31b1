"""The models of the matrix: every family in every task it has in transformers, small, built from its config.

Weights are random, wide enough that every part of a model matters to its output, and without dropout, so that one
training step on a batch lowers the loss on that batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.tiny import made

VOCAB, WIDTH, LAYERS, HEADS, LABELS = 40, 32, 2, 2, 3
PAD, BOS, EOS, IMAGE = SPECIAL = 0, 1, 2, 3  # token ids that mean something
LONGEST = 32

Batch = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Model:
    """One row of the page: a family's model for a task.

    Attributes:
        family, task: their names; `task` is a `TaskType`, or one of ours where peft has none.
        build: makes the model.
        batch: its inputs for training.
        head: modules trained along, where no task type says so.
        prompt: inputs of `generate`; None where there is nothing to generate.
        package: what it needs beside transformers.
        aside: some of its layers are there for calls that are not made here (the cross attention of half a model).
    """

    family: str
    task: str
    build: Callable[[], Any]
    batch: Batch
    head: tuple[str, ...] = ()
    prompt: Batch | None = None
    package: str | None = None
    aside: bool = False

    @property
    def task_type(self) -> str | None:
        return self.task if self.task.isupper() else None

    def __str__(self) -> str:
        return f"{self.family}-{self.task.replace(' ', '-')}"


# ---------------------------------------------------------------------- inputs


def text() -> dict[str, Any]:
    """Two texts that end in EOS, the second with two tokens of padding."""
    ids = torch.tensor([[7, 12, 30, 9, 21, EOS], [15, 8, 33, EOS, PAD, PAD]])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def unpadded() -> dict[str, Any]:
    ids = torch.tensor([[7, 12, 30, 9], [15, 8, 33, 26]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def language() -> dict[str, Any]:
    batch = text()
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def translation() -> dict[str, Any]:
    return {**text(), "labels": torch.tensor([[11, 29, 17, EOS], [34, 5, EOS, -100]])}


def translation_features() -> dict[str, Any]:
    return {**text(), "decoder_input_ids": torch.tensor([[BOS, 11, 29, 17], [BOS, 34, 5, 16]])}


def labelled() -> dict[str, Any]:
    return {**text(), "labels": torch.tensor([2, 0])}


def tagged() -> dict[str, Any]:
    return {**text(), "labels": torch.tensor([[0, 1, 2, 1, 0, 2], [1, 2, 0, 0, -100, -100]])}


def spans() -> dict[str, Any]:
    return {**text(), "start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([3, 2])}


def wave(*shape: int) -> Tensor:
    """Numbers that look random and are the same everywhere."""
    return torch.sin(torch.arange(1.0, 1 + torch.Size(shape).numel()) ** 1.3).view(shape)


def images(size: int) -> dict[str, Any]:
    return {"pixel_values": wave(2, 3, size, size)}


def labelled_images(size: int) -> dict[str, Any]:
    return {**images(size), "labels": torch.tensor([2, 0])}


def segmented_images(size: int) -> dict[str, Any]:
    return {**images(size), "labels": (torch.arange(2 * size * size) % LABELS).view(2, size, size)}


def speech() -> dict[str, Any]:
    return {"input_features": wave(2, 8, 16)}


def transcribed() -> dict[str, Any]:
    return {**speech(), "labels": torch.tensor([[11, 29, 17, EOS], [34, 5, EOS, -100]])}


def speech_features() -> dict[str, Any]:
    return {**speech(), "decoder_input_ids": torch.tensor([[BOS, 11, 29, 17], [BOS, 34, 5, 16]])}


def captioned() -> dict[str, Any]:
    """Images, each as two image tokens and the text after them."""
    ids = torch.tensor([[IMAGE, IMAGE, 7, 12, 30, EOS], [IMAGE, IMAGE, 15, 8, EOS, PAD]])
    mask = (ids != PAD).long()
    labels = ids.masked_fill((mask == 0) | (ids == IMAGE), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **images(8)}


def uncaptioned() -> dict[str, Any]:
    ids = torch.tensor([[IMAGE, IMAGE, 7], [IMAGE, IMAGE, 15]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images(8)}


def pairs() -> dict[str, Any]:
    return {**text(), **images(8), "return_loss": True}


def latents() -> dict[str, Any]:
    return {"sample": wave(2, 4, 8, 8), "timestep": torch.tensor([3, 40]), "encoder_hidden_states": wave(2, 5, WIDTH)}


# ---------------------------------------------------------------------- building


def ready(build: Callable[[], Any]) -> Any:
    """`build()` with random weights, the same each time."""

    def wide() -> Any:
        model = build()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.normal_(0, 1.2 / p[0].numel() ** 0.5)
        for part in model.modules():
            settings = getattr(part, "generation_config", None)
            if settings is None:
                continue
            # as many tokens as asked for, each the likeliest of those without a meaning
            settings.update(eos_token_id=None, forced_bos_token_id=None, forced_eos_token_id=None, pad_token_id=PAD)
            settings.update(suppress_tokens=list(SPECIAL))
        return model

    return made(wide)


def of_transformers(cls: str, config: str, fields: dict[str, Any]) -> Any:
    import transformers

    return ready(lambda: getattr(transformers, cls)(without_dropout(getattr(transformers, config)(**fields))))


def without_dropout(config: Any) -> Any:
    """`config` with every rate of dropping something at zero."""
    for name, value in vars(config).items():
        if hasattr(value, "model_type"):
            without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return ready(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, WIDTH),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
            norm_num_groups=4,
        )
    )


TASK_OF = {  # the end of a class's name -> task
    "LMHeadModel": "CAUSAL_LM",
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "Model": "FEATURE_EXTRACTION",
}
_BATCHES: dict[str, Batch] = {
    "CAUSAL_LM": language,
    "SEQ_2_SEQ_LM": translation,
    "SEQ_CLS": labelled,
    "TOKEN_CLS": tagged,
    "QUESTION_ANS": spans,
    "FEATURE_EXTRACTION": text,
}


def family(name: str, prefix: str, classes: str, fields: dict[str, Any], features: Batch = text) -> list[Model]:
    """A family's models. `classes`: ends of their names; `features`: the batch for the model without a head."""
    found = []
    for end in classes.split():
        task = TASK_OF[end]
        labels = 2 if task == "QUESTION_ANS" else LABELS
        own = dict(fields, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, num_labels=labels)
        if (name, task) in [("bert", "CAUSAL_LM"), ("roberta", "CAUSAL_LM")]:
            own["is_decoder"] = True
        batch = features if task == "FEATURE_EXTRACTION" else _BATCHES[task]
        build = functools.partial(of_transformers, prefix + end, prefix + "Config", own)
        prompt = unpadded if task.endswith("_LM") else None
        found.append(Model(name, task, build, batch, prompt=prompt, aside=(name, task) == ("bart", "CAUSAL_LM")))
    return found


def special(name: str, task: str, cls: str, fields: dict[str, Any], batch: Batch, **more: Any) -> Model:
    """One model that is not of text alone. `cls`: its class, with a dot between the family's prefix and the rest."""
    prefix, end = cls.split(".")
    return Model(name, task, functools.partial(of_transformers, prefix + end, prefix + "Config", fields), batch, **more)


# ---------------------------------------------------------------------- families

_ALL = "ForSequenceClassification ForTokenClassification ForQuestionAnswering Model"
_NO_TOKENS = "ForSequenceClassification ForQuestionAnswering Model"
_NO_SPANS = "ForSequenceClassification ForTokenClassification Model"

_TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_GPT = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LONGEST}
_BLOOM = {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
_BERT = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
}
_LLAMA = dict(_BERT, num_key_value_heads=1, head_dim=WIDTH // HEADS)
_DEBERTA = dict(_BERT, relative_attention=True, pos_att_type=["c2p", "p2c"])
_OPT = dict(_BERT, word_embed_proj_dim=WIDTH, ffn_dim=48)
_NEO = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "attention_types": [[["global", "local"], 1]],
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": PAD,
}
_BART = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": LONGEST,
    "decoder_start_token_id": EOS,
}
_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 4,
}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16, "patch_size": 2}
_SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, WIDTH],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}
_BLIP2 = {
    "vision_config": _VIT,
    "qformer_config": dict(_BERT, encoder_hidden_size=WIDTH, cross_attention_frequency=1),
    "text_config": dict(_OPT, model_type="opt", **_TOKENS),
    "num_query_tokens": 2,
    "image_token_index": IMAGE,
}
_WHISPER = dict(_BART, num_mel_bins=8, max_source_positions=8, max_target_positions=LONGEST, **_TOKENS)
_CLIP = {"text_config": dict(_BERT, **_TOKENS), "vision_config": _VIT, "projection_dim": 16}
_THREE = {"num_labels": LABELS}

MODELS: list[Model] = [
    *family("gpt2", "GPT2", f"LMHeadModel {_ALL}", _GPT),
    *family("bloom", "Bloom", f"ForCausalLM {_ALL}", _BLOOM),
    *family("opt", "OPT", f"ForCausalLM {_NO_TOKENS}", _OPT),
    *family("gpt_neo", "GPTNeo", f"ForCausalLM {_ALL}", _NEO),
    *family("gptj", "GPTJ", f"ForCausalLM {_NO_TOKENS}", dict(_GPT, rotary_dim=8)),
    *family("gpt_neox", "GPTNeoX", f"ForCausalLM {_ALL}", _BERT),
    *family("llama", "Llama", f"ForCausalLM {_ALL}", _LLAMA),
    *family("mistral", "Mistral", f"ForCausalLM {_ALL}", _LLAMA),
    *family("qwen2", "Qwen2", f"ForCausalLM {_ALL}", _LLAMA),
    *family("qwen3", "Qwen3", f"ForCausalLM {_ALL}", _LLAMA),
    *family("glm", "Glm", f"ForCausalLM {_NO_SPANS}", _LLAMA),
    *family("glm4", "Glm4", f"ForCausalLM {_NO_SPANS}", _LLAMA),
    *family("t5", "T5", f"ForConditionalGeneration {_ALL}", _T5, translation_features),
    *family("mt5", "MT5", f"ForConditionalGeneration {_ALL}", _T5, translation_features),
    *family("bart", "Bart", f"ForCausalLM ForConditionalGeneration {_NO_TOKENS}", _BART),
    *family("bert", "Bert", f"LMHeadModel {_ALL}", _BERT),
    *family("roberta", "Roberta", f"ForCausalLM {_ALL}", _BERT),
    *family("deberta", "Deberta", _ALL, _DEBERTA),
    *family("deberta-v2", "DebertaV2", _ALL, dict(_DEBERTA, share_att_key=True)),
    special("vit", "FEATURE_EXTRACTION", "ViT.Model", _VIT, lambda: images(8)),
    special(
        *("vit", "image classification", "ViT.ForImageClassification"),
        *({**_VIT, **_THREE}, lambda: labelled_images(8)),
        head=("classifier",),
    ),
    special("swin", "FEATURE_EXTRACTION", "Swin.Model", _SWIN, lambda: images(16)),
    special(
        *("swin", "image classification", "Swin.ForImageClassification"),
        *({**_SWIN, **_THREE}, lambda: labelled_images(16)),
        head=("classifier",),
    ),
    special("segformer", "FEATURE_EXTRACTION", "Segformer.Model", _SEGFORMER, lambda: images(16)),
    special(
        *("segformer", "image classification", "Segformer.ForImageClassification"),
        *({**_SEGFORMER, **_THREE}, lambda: labelled_images(16)),
        head=("classifier",),
    ),
    special(
        *("segformer", "semantic segmentation", "Segformer.ForSemanticSegmentation"),
        *({**_SEGFORMER, **_THREE}, lambda: segmented_images(16)),
        head=("decode_head",),
    ),
    special("blip-2", "image to text", "Blip2.ForConditionalGeneration", _BLIP2, captioned, prompt=uncaptioned),
    special("whisper", "FEATURE_EXTRACTION", "Whisper.Model", _WHISPER, speech_features),
    special("whisper", "speech to text", "Whisper.ForConditionalGeneration", _WHISPER, transcribed, prompt=speech),
    special("clip", "text and image", "CLIP.Model", _CLIP, pairs),
    Model("unet", "text to image", unet, latents, package="diffusers"),
]
