"""Default targets, family by family, on models of the installed transformers (on meta: nothing is computed)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from inlay import BitFitConfig, BottleneckConfig, IA3Config, LNTuningConfig
from inlay.core.host import site
from inlay.core.plan import plan
from inlay.errors import ConfigError
from inlay.inject import aliases_of
from inlay.methods.targets import IA3

WIDTH, INNER = 32, 48
SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "word_embed_proj_dim"], WIDTH),
    **dict.fromkeys(["intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"], INNER),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_attention_heads", "n_head", "n_heads"], 2),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
    "num_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "d_kv": 8,
    "vocab_size": 50,
    "rotary_dim": 4,
    **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"], 0),
}
SEQ2SEQ = {"t5", "mt5", "umt5", "bart", "mbart", "marian", "whisper"}
VISION = {"vit", "swin", "segformer"}
WHOLE = {"llama4", "clip", "blip-2", "UNet2DConditionModel"}  # several models in one, or of another library
REMOTE = {"chatglm", "RefinedWeb", "RefinedWebModel"}  # their code is not in transformers
NO_BLOCK = {"bert", "roberta", "xlm-roberta", "electra", "layoutlm", "deberta", "deberta-v2"} | {"opt", "blip-2"}
NO_BLOCK |= {"bart", "mbart", "marian", "whisper"}
FAMILIES = sorted(set(IA3) - REMOTE - WHOLE)


def model_of(kind: str) -> Any:
    """A model of two layers per stack, on meta."""
    config_class = CONFIG_MAPPING[kind]
    known = {*config_class().to_dict(), *getattr(config_class, "attribute_map", {})}
    fields = {} if kind in {"swin", "segformer"} else {k: v for k, v in SIZES.items() if k in known}
    if kind == "gpt_neo":
        fields["attention_types"] = [[["global"], 2]]
    with torch.device("meta"):
        return class_of(kind)(config_class(**fields))


def class_of(kind: str) -> Any:
    """The family's model with a head."""
    prefix = CONFIG_MAPPING[kind].__name__.removesuffix("Config").removesuffix("Text")
    irregular = {"marian": "MarianMTModel", "clip_text_model": "CLIPTextModel", "clip_vision_model": "CLIPVisionModel"}
    regular = [prefix + head for head in ("ForMaskedLM", "ForCausalLM", "LMHeadModel")]
    if kind in SEQ2SEQ | VISION:
        regular = [prefix + head for head in ("ForConditionalGeneration", "ForImageClassification")]
    found = [getattr(transformers, name) for name in [irregular.get(kind, ""), *regular] if hasattr(transformers, name)]
    return found[0]


def placed(model: Any, config: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, host, adapter) of everything that `config` places by default."""
    for p in plan(model, config, aliases=aliases_of(model), init=False)[0]:
        yield p.path, p.host, p.adapter


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family(kind: str) -> None:
    model = model_of(kind)
    stacks = 2 if kind in SEQ2SEQ else 1
    fixed = kind not in {"swin", "segformer"}  # those have stages of several widths

    # bottlenecks: one per feed-forward block, and one per attention, each behind the layer that leads back
    after = {path: host for path, host, _ in placed(model, BottleneckConfig(style="pfeiffer"))}
    both = {path: host for path, host, _ in placed(model, BottleneckConfig())}
    assert after.keys() < both.keys()
    if fixed:
        assert len(after) == 2 * stacks and len(both) - len(after) == 2 * (2 * stacks - 1)
    else:
        assert len(both) == 2 * len(after)
    for path, host in both.items():
        if fixed and host._parameters.get("weight") is not None:
            at = site(path, host, "linear")
            assert at.out_features == WIDTH, path
            if path in after and kind not in {"gptj", "codegen", "mpt", "bloom", "falcon"}:
                assert at.in_features == INNER, path
    if kind in NO_BLOCK:
        with pytest.raises(ConfigError, match=r"The feed-forward block of .* is no module of its own"):
            list(placed(model, BottleneckConfig(style="parallel")))
    else:
        beside = {path for path, *_ in placed(model, BottleneckConfig(style="parallel"))}
        assert len(beside) == len(after)
        assert all(any(p == b or p.startswith(b + ".") for b in beside) for p in after)

    # (IA)^3: per attention one or two vectors on outputs; per block one on its inside
    scales = {path: adapter.inner for path, _, adapter in placed(model, IA3Config())}
    inner = [path for path, is_inner in scales.items() if is_inner]
    attentions = len(both) - len(after)
    if kind == "mixtral":  # its experts are no layers
        assert not inner
    elif kind in {"mt5", "umt5"}:  # as in peft: the output of the gate's other half, which is the same
        assert not inner and sum("wi_1" in p for p in scales) == len(after)
    else:
        assert set(after) & set(both) <= set(inner) | {p for p in after if kind == "llama4_text"}
    outer = [p for p in scales if p not in inner and "wi_1" not in p]
    assert len(outer) in (attentions, 2 * attentions)

    # norms: one vector or two to each, and at least one per block
    norms = {path: host for path, host, _ in placed(model, LNTuningConfig())}
    assert len(norms) >= len(after)
    assert all("norm" in type(host).__name__.lower() for host in norms.values())


@pytest.mark.parametrize("kind", sorted(REMOTE))
def test_a_family_with_code_of_its_own(kind: str) -> None:
    paths = ["transformer.h.0.input_layernorm", "transformer.h.0.mlp"]
    paths += [f"transformer.h.0.{p}" for p in ("self_attention.query_key_value", "self_attention.dense")]
    paths += [f"transformer.h.0.mlp.{p}" for p in ("dense_h_to_4h", "dense_4h_to_h")]

    def means(config: Any) -> set[str]:
        wanted = config.default_targets(kind)
        if isinstance(wanted, str):
            return {p.rsplit(".", 1)[-1] for p in paths if re.fullmatch(wanted, p)}
        return {n for n in wanted if any(p.endswith("." + n) for p in paths)}

    assert means(IA3Config()) == {"query_key_value", "dense_4h_to_h"} and IA3[kind][1] == ["dense_4h_to_h"]
    assert means(BottleneckConfig()) == {"dense", "dense_4h_to_h"}
    assert means(BottleneckConfig(style="pfeiffer")) == {"dense_4h_to_h"}
    assert means(BottleneckConfig(style="parallel")) == {"mlp"}
    assert means(LNTuningConfig()) == {"input_layernorm"}


def test_every_family_of_loras_has_a_default_everywhere() -> None:
    from inlay.methods.targets import ATTENTION

    for kind in [k for k in ATTENTION if k != "UNet2DConditionModel"]:
        for config in (IA3Config(), LNTuningConfig(), BottleneckConfig(), BottleneckConfig(style="pfeiffer")):
            assert config.default_targets(kind), (kind, config)


def test_bitfit_needs_no_table() -> None:
    model = model_of("gpt2")
    assert len(list(placed(model, BitFitConfig()))) == 2 * 6 + 1
