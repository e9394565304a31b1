"""transformers' own integration of adapters: models that are changed in place, their files, and what loads them.

Arguments: a folder to write to.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from common import filled, ids, llama, report, vit
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForSequenceClassification

FOLDER = Path(sys.argv[1])
TARGETS = ["q_proj", "v_proj", "down_proj"]
BASE = FOLDER / "base"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids()).logits.flatten()[:20]


def trained(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return f"ValueError: {error}"
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "accepted"


def in_place() -> dict[str, Any]:
    """add, set, disable, enable, get, delete, save."""
    model = AutoModelForCausalLM.from_pretrained(BASE)
    plain = logits(model)
    found: dict[str, Any] = {"unknown": refused(model.set_adapter, "default")}
    model.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS))
    filled(model)
    found |= {"first": logits(model), "first trained": trained(model), "active": model.active_adapters()}
    found["twice"] = refused(model.add_adapter, LoraConfig(target_modules=TARGETS))
    model.add_adapter(LoraConfig(r=3, use_rslora=True, target_modules=["o_proj", "q_proj"]), "other")
    filled(model, adapter_name="other")
    found |= {"other": logits(model), "other trained": trained(model), "names": list(model.peft_config)}
    model.set_adapter(["default", "other"])
    found |= {"both": logits(model), "both active": model.active_adapters()}
    found["two at once"] = refused(model.save_pretrained, FOLDER / "two")
    model.disable_adapters()
    found["disabled"] = torch.equal(logits(model), plain)
    model.enable_adapters()
    model.set_adapter("default")
    found |= {"again": logits(model), "again trained": trained(model)}
    state = model.get_adapter_state_dict()
    found["keys"] = sorted(state)
    found["other keys"] = sorted(model.get_adapter_state_dict("other"))
    model.save_pretrained(FOLDER / "in_place")
    found["files"] = sorted(p.name for p in (FOLDER / "in_place").iterdir())
    found["saved keys"] = sorted(load_file(FOLDER / "in_place" / "adapter_model.safetensors"))
    config = json.loads((FOLDER / "in_place" / "adapter_config.json").read_text())
    found["config"] = {k: config[k] for k in ("peft_type", "r", "lora_alpha")}
    found["config"] |= {"targets": sorted(config["target_modules"]), "base": config["base_model_name_or_path"]}
    found["config"]["base"] = Path(found["config"]["base"]).name

    model.delete_adapter("default")
    found |= {"left": list(model.peft_config), "missing": refused(model.delete_adapter, "default")}
    model.delete_adapter(["other"])
    found |= {"none": torch.equal(logits(model), plain), "loaded": model._hf_peft_config_loaded}
    model.add_adapter(LoraConfig(r=2, target_modules=TARGETS), "new")
    found["new"] = [*model.active_adapters(), trained(model)]
    return found


def loading() -> dict[str, Any]:
    """load_adapter from a folder and from tensors, into a model and into a view, and back."""
    model, found = llama(), {}
    info = model.load_adapter(str(FOLDER / "in_place"))
    found |= {"loaded": logits(model), "trained": trained(model), "evaluating": not model.training}
    found |= {"missing": sorted(info.missing_keys), "unexpected": sorted(info.unexpected_keys)}
    found["again"] = refused(model.load_adapter, str(FOLDER / "in_place"))
    state = load_file(FOLDER / "in_place" / "adapter_model.safetensors")
    config = LoraConfig(r=2, lora_alpha=16, target_modules=TARGETS)
    bare = {k.removeprefix("base_model.model."): v for k, v in state.items()}
    model.load_adapter(adapter_state_dict=bare, peft_config=config, adapter_name="tensors", is_trainable=True)
    found |= {"tensors": logits(model), "tensors active": model.active_adapters(), "tensors trained": trained(model)}
    # a second load replaces the tensors: what an optimizer holds is made after it
    view = PeftModel.from_pretrained(llama(), str(FOLDER / "in_place"))
    found["view"] = logits(view)
    view.save_pretrained(str(FOLDER / "view"))
    other = llama()
    other.load_adapter(str(FOLDER / "view"), adapter_name="v")
    found |= {"from view": logits(other), "name": other.active_adapters()}
    other.delete_adapter("v")
    other.save_pretrained(str(FOLDER / "whole"))
    found["whole"] = sorted(load_file(FOLDER / "whole" / "model.safetensors")) == sorted(llama().state_dict())
    return found


def automatic() -> dict[str, Any]:
    """AutoModel... and pipeline of an adapter's folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    found: dict[str, Any] = {}
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "in_place")
    found |= {"class": type(model).__name__, "logits": logits(model), "trained": trained(model)}
    mapped = AutoModelForCausalLM.from_pretrained(FOLDER / "in_place", device_map="auto", adapter_name="named")
    found |= {"mapped": logits(mapped), "mapped name": mapped.active_adapters()}
    (FOLDER / "deep").mkdir(exist_ok=True)
    (FOLDER / "in_place").rename(FOLDER / "deep" / "in_place")
    deep = AutoModelForCausalLM.from_pretrained(BASE)
    deep.load_adapter(str(FOLDER / "deep"), adapter_kwargs={"subfolder": "in_place"})
    found["subfolder"] = logits(deep)
    (FOLDER / "deep" / "in_place").rename(FOLDER / "in_place")
    vocabulary = {f"w{i}": i for i in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", unk_token="w0")
    pipe = pipeline("text-generation", model=str(FOLDER / "in_place"), tokenizer=words)
    found["text"] = pipe("w5 w9 w20", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    view = PeftModel.from_pretrained(llama(), str(FOLDER / "in_place"))
    pipe = pipeline("text-generation", model=view, tokenizer=words)
    found["view's text"] = pipe("w5 w9 w20", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    return found


def heads() -> dict[str, Any]:
    """A classifier whose head is trained in full: written by a view and by a model in place, loaded by AutoModel."""
    found: dict[str, Any] = {}
    view = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(FOLDER / "classifier"),
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=TARGETS),
    )
    filled(view)
    view.eval()
    view.save_pretrained(str(FOLDER / "head_of_view"))
    found["view"] = logits(view)
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER / "classifier")
    model.add_adapter(LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["score"]))
    filled(model)
    found |= {"in place": logits(model), "trained": trained(model), "keys": sorted(model.get_adapter_state_dict())}
    model.save_pretrained(str(FOLDER / "head_in_place"))
    for name in ("head_of_view", "head_in_place"):
        again = AutoModelForSequenceClassification.from_pretrained(FOLDER / name)
        found[name] = logits(again)
    return found


def renamed() -> dict[str, Any]:
    """ViT: its modules had other names when most of its adapters were written."""
    found: dict[str, Any] = {}
    pixels = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)

    def of(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(pixels).logits.flatten()

    model = vit()
    found["plain"] = of(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    filled(model)
    found["added"] = of(model)
    model.save_pretrained(str(FOLDER / "vit"))
    again = vit()
    again.load_adapter(str(FOLDER / "vit"))
    found["again"] = of(again)
    state = load_file(FOLDER / "vit" / "adapter_model.safetensors")
    found["keys"] = sorted(state)
    then = {
        k.replace("layers.", "encoder.layer.")
        .replace("attention.q_proj", "attention.attention.query")
        .replace("attention.v_proj", "attention.attention.value"): v
        for k, v in state.items()
    }
    old = vit()
    old.load_adapter(adapter_state_dict=then, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    found["old"] = of(old)
    return found


def methods() -> dict[str, Any]:
    """Other methods and other layers: added, saved, loaded in place and into a view."""
    found: dict[str, Any] = {}
    configs = {
        "tokens": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 9, 20]),
        "embedding": LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
        "dora": LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
        "patterns": LoraConfig(r=2, target_modules="all-linear", rank_pattern={"q_proj": 3}, lora_bias=True),
        "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "oft": OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
        "norms": LNTuningConfig(target_modules=["input_layernorm"]),
    }
    for name, config in configs.items():
        model = llama()
        model.add_adapter(config)
        filled(model, 0.1)
        model.save_pretrained(str(FOLDER / name))
        again = llama()
        again.load_adapter(str(FOLDER / name))
        found[name] = {
            "logits": logits(model),
            "trained": trained(model),
            "keys": sorted(model.get_adapter_state_dict()),
        }
        found[name]["again"] = torch.equal(logits(again), logits(model))
        view = PeftModel.from_pretrained(llama(), str(FOLDER / name))
        found[name]["view"] = torch.equal(logits(view), logits(model))
    for name, config in {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        "shared": VeraConfig(r=2, target_modules=["q_proj"]),
    }.items():
        found[name] = refused(llama().add_adapter, config).partition(":")[0]
    return found


def swapping() -> dict[str, Any]:
    """`load_adapter(hotswap=True)`, and after `enable_peft_hotswap`."""
    found: dict[str, Any] = {}
    for seed in (1, 2):
        model = llama()
        model.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
        filled(model, seed=seed).save_pretrained(str(FOLDER / f"swap{seed}"))
        found[f"{seed}"] = logits(model)
    model = llama()
    found["nothing there"] = refused(model.load_adapter, str(FOLDER / "swap1"), hotswap=True)
    model.load_adapter(str(FOLDER / "swap1"))
    model.load_adapter(str(FOLDER / "swap2"), adapter_name="default", hotswap=True)
    found["swapped"] = logits(model)
    found["enabled late"] = refused(model.enable_peft_hotswap)
    model = llama()
    model.enable_peft_hotswap(target_rank=2)
    model.load_adapter(str(FOLDER / "swap1"), adapter_name="default")
    model.load_adapter(str(FOLDER / "swap2"), adapter_name="default")
    found["enabled"] = logits(model)
    return found


def convolution() -> dict[str, Any]:
    """wav2vec2's x-vector layers use the weight of their layer without calling it, and say so of a LoRA in it."""
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import TDNNLayer

    layer = TDNNLayer(Wav2Vec2Config(tdnn_dim=(8, 8), tdnn_kernel=(3, 3), tdnn_dilation=(1, 1)), 1)
    x = torch.ones(1, 5, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(x)
        before = len(caught)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["kernel"]), layer)
        layer(x)
    return {"before": before, "after": [str(w.message)[:40] for w in caught[before:]]}


def speech() -> dict[str, Any]:
    """Granite Speech generates with its adapters if it hears something, without if not."""
    from transformers import GraniteSpeechConfig, GraniteSpeechForConditionalGeneration

    text = {"model_type": "granite", "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    encoder = {"input_dim": 8, "num_layers": 1, "hidden_dim": 8, "feedforward_mult": 1, "num_heads": 2, "dim_head": 4}
    encoder |= {"output_dim": 8, "context_size": 4, "max_pos_emb": 8, "conv_kernel_size": 3, "conv_expansion_factor": 2}
    projector = {"model_type": "blip_2_qformer", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    projector |= {"intermediate_size": 8, "encoder_hidden_size": 8}
    parts = {"text_config": text, "encoder_config": encoder, "projector_config": projector}
    config = GraniteSpeechConfig(**parts, has_lora_adapter=True, window_size=4, downsample_rate=2)
    torch.manual_seed(0)
    model = GraniteSpeechForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    plain = model.generate(ids(), max_new_tokens=3, do_sample=False)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    filled(model.eval(), scale=3.0)

    def with_them() -> float:
        with torch.no_grad():
            return model(input_ids=ids()).logits.sum().item()

    found: dict[str, Any] = {"added": with_them()}
    found["same"] = torch.equal(model.generate(ids(), max_new_tokens=3, do_sample=False), plain)
    found["disabled"] = with_them()
    model.enable_adapters()
    return {**found, "enabled": with_them()}


if __name__ == "__main__":
    llama().save_pretrained(BASE)
    llama(LlamaForSequenceClassification, num_labels=3).save_pretrained(FOLDER / "classifier")
    parts = (in_place, loading, automatic, heads, renamed, methods, swapping, convolution, speech)
    report(**{part.__name__: part() for part in parts})
