"""What is written computes what the view does, and appears complete or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import inlay
from inlay import AutoPeftModelForCausalLM, IA3Config, PeftModel, PromptTuningConfig, get_peft_model
from inlay.comparison import Decoding
from inlay.comparison.answers import write
from inlay.comparison.questions import questions_of
from inlay.errors import ConfigError, CorruptFileError, MissingFileError, NumericsError, StateError
from inlay.exporting import export
from inlay.hf.tokenizers import load_tokenizer
from tests import tiny
from tests.comparison.lm import TOKENIZER, base, lora, view
from tests.hf.tiny import base as other_family
from tests.hf.tiny import lora as other_lora

PROMPTS = ["Name three rivers.", "Count", "Write"]


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A base with its tokenizer, on disk."""
    base().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder: Path, **how: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **how).eval()


def texts(model: Any, tokenizer: Any = TOKENIZER) -> list[str]:
    return write(model, questions_of(PROMPTS, tokenizer), tokenizer, Decoding(max_new_tokens=8))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tiny.ids(3, 9, len(TOKENIZER))).logits


def test_merged_is_a_folder_of_transformers_that_writes_the_same(tmp_path: Path) -> None:
    model = view()
    before = tiny.outline(model)
    made = export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert tiny.outline(model) == before
    plain, tokenizer = loaded(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(plain) is transformers.LlamaForCausalLM and not isinstance(plain, PeftModel)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)
    assert texts(plain, tokenizer) == texts(model) != texts(base())
    assert tokenizer.chat_template == TOKENIZER.chat_template and tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert made.folder == tmp_path / "out" and made.difference is not None and made.notes == []
    assert made.difference.largest < 1e-4 < made.difference.effect and made.difference.agreement == 1.0
    assert "verified: logits differ by at most" in str(made) and made.to_dict()["folder"] == str(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_merged_from_a_folder_finds_base_and_tokenizer(tmp_path: Path, base_folder: Path) -> None:
    model = view(loaded(base_folder))
    model.save_pretrained(str(tmp_path / "adapter"))
    for out, changes in (("a", {}), ("b", {"base": base_folder}), ("c", {"base": base(), "tokenizer": TOKENIZER})):
        made = export(str(tmp_path / "adapter"), "merged", tmp_path / out, **changes)
        assert made.difference is not None and made.difference.largest <= made.difference.allowed
        torch.testing.assert_close(logits(loaded(tmp_path / out)), logits(model), rtol=1e-4, atol=1e-5)
        assert load_tokenizer(tmp_path / out).get_vocab() == TOKENIZER.get_vocab()


def test_the_adapters_own_tokenizer_comes_first(tmp_path: Path, base_folder: Path) -> None:
    view(loaded(base_folder)).save_pretrained(str(tmp_path / "adapter"))
    other = load_tokenizer(base_folder)
    other.chat_template = "{{ 'mine' }}"
    other.save_pretrained(tmp_path / "adapter")
    for to in ("merged", "peft"):
        export(tmp_path / "adapter", to, tmp_path / to)
        assert load_tokenizer(tmp_path / to).chat_template == "{{ 'mine' }}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    model = view(base(dtype=dtype))
    made = export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert made.difference is not None and made.difference.dtype == str(dtype)[6:]
    assert loaded(tmp_path / "out", dtype="auto").dtype == dtype


def test_dtypes(tmp_path: Path) -> None:
    """Written in another dtype than the view's: narrower rounded once, wider merged in it."""
    model = view(base(dtype=torch.bfloat16))
    before = tiny.outline(model)
    host = model.model.layers[0].self_attn.q_proj
    wanted = host.adapters["default"].weight(host.weight.detach().float())
    for dtype in ("float32", "bfloat16"):
        made = export(model, "merged", tmp_path / dtype, tokenizer=TOKENIZER, dtype=dtype, tolerance=0.2)
        plain = loaded(tmp_path / dtype, dtype="auto")
        assert str(plain.dtype) == f"torch.{dtype}" and made.difference is not None and made.difference.dtype == dtype
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype
        torch.testing.assert_close(
            plain.model.layers[0].self_attn.q_proj.weight, wanted.to(plain.dtype), rtol=0, atol=1e-6
        )
    assert tiny.outline(model) == before


def test_numbers_too_large_for_a_dtype(tmp_path: Path) -> None:
    model = view()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = 1e5
    with pytest.raises(NumericsError, match=r"model.embed_tokens.weight has numbers that float16 cannot hold"):
        export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER, dtype="float16", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_an_adapter(tmp_path: Path) -> None:
    model = base()
    made = export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert made.difference is not None and made.difference.effect is None and made.notes == []
    assert "adapter" not in str(made) and torch.equal(logits(loaded(tmp_path / "out")), logits(model))


def test_a_quantised_base_becomes_dense(tmp_path: Path, base_folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="quantises the base")
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = view(loaded(base_folder, quantization_config=four))
    made = export(model, "merged", tmp_path / "out")
    plain = loaded(tmp_path / "out")
    assert not hasattr(plain.config, "quantization_config") and type(plain.lm_head) is torch.nn.Linear
    assert all(type(m) is torch.nn.Linear for n, m in plain.named_modules() if n.endswith("_proj"))
    assert made.difference is not None and "the base is quantised" in made.notes[0]
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-3, atol=1e-3)


def test_tied_embeddings_are_untied_by_an_adapted_head(tmp_path: Path) -> None:
    model = view(base(tie_word_embeddings=True), target_modules=["lm_head", "q_proj"])
    export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5)


def test_modules_trained_in_full_are_merged(tmp_path: Path) -> None:
    model = view(modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and "lm_head" in name:
                p.mul_(1.5)
    made = export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert made.difference is not None and made.difference.effect > 0.1


def test_only_the_active_adapter_is_merged(tmp_path: Path) -> None:
    model = view()
    model.add_adapter("second", lora())
    tiny.scramble(model, 0.3, seed=8)
    model.set_adapter("second")
    export(model, "merged", tmp_path / "m", tokenizer=TOKENIZER)
    export(model, "peft", tmp_path / "p", tokenizer=TOKENIZER)
    again = PeftModel.from_pretrained(base(), str(tmp_path / "p")).eval()
    for found in (loaded(tmp_path / "m"), again):
        torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "p" / "second").exists()


def test_what_differs_too_much_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"logits differ by at most .* \(allowed 0; .*Nothing was kept.*tolerance"):
        export(view(base(dtype=torch.bfloat16)), "merged", tmp_path / "out", tokenizer=TOKENIZER, tolerance=0)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_merge_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check loads the files: a weight that is not what the view computes with is seen."""
    model = view()
    save = transformers.LlamaForCausalLM.save_pretrained

    def spoilt(plain: Any, folder: Any, **kwargs: Any) -> None:
        plain.model.layers[0].self_attn.q_proj.weight.data.mul_(1.1)  # a merged one, so the base is not touched
        save(plain, folder, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", spoilt)
    with pytest.raises(NumericsError, match="does not compute what base and adapter do"):
        export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []
    made = export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER, verify=False)
    assert made.difference is None and (tmp_path / "out" / "model.safetensors").exists()


def test_an_adapter_that_does_nothing_is_noted(tmp_path: Path) -> None:
    made = export(get_peft_model(base(), lora()), "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert made.notes == ["the adapter changes nothing on the probes: it is untrained, or they do not reach it"]


def test_probes_of_ones_own(tmp_path: Path) -> None:
    for i, probes in enumerate((PROMPTS, {"input_ids": torch.tensor([[3, 4, 5]])})):
        made = export(view(), "merged", tmp_path / str(i), tokenizer=TOKENIZER, probes=probes)
        assert made.difference is not None and made.difference.effect > 0
    with pytest.raises(ConfigError, match=r"probes=.* is not allowed: expected tensors by argument"):
        export(view(), "merged", tmp_path / "x", tokenizer=False, probes=PROMPTS)


def test_models_without_tokens(tmp_path: Path) -> None:
    model = tiny.scramble(get_peft_model(other_family("vit"), other_lora("vit"))).eval()
    with pytest.raises(ConfigError, match="pixel_values"):
        export(model, "merged", tmp_path / "out", tokenizer=False)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = export(model, "merged", tmp_path / "out", tokenizer=False, probes={"pixel_values": pixels})
    assert made.difference is not None and made.difference.effect > 0


def test_peft_from_view_and_folder_is_the_adapter(tmp_path: Path, base_folder: Path) -> None:
    model = view(loaded(base_folder))
    made = export(model, "peft", tmp_path / "a")
    assert made.rejections == [] and made.difference is None
    (tmp_path / "a" / "optimizer.pt").write_bytes(b"x")
    export(tmp_path / "a", "peft", tmp_path / "b")
    assert not (tmp_path / "b" / "optimizer.pt").exists()
    for folder in ("a", "b"):
        again = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / folder)).eval()
        assert torch.equal(logits(again), logits(model))
        assert load_tokenizer(tmp_path / folder).chat_template == TOKENIZER.chat_template


def test_peft_lists_what_is_not_read(tmp_path: Path) -> None:
    made = export(view(use_dora=True), "peft", tmp_path / "a", tokenizer=TOKENIZER)
    assert "use_dora=True" in made.rejections[0] and "vLLM would reject it: use_dora=True" in str(made)
    assert export(view(use_dora=True), "peft", tmp_path / "b", tokenizer=TOKENIZER, verify=False).rejections == []


def test_methods_that_cannot_be_merged_say_so(tmp_path: Path) -> None:
    prompts = get_peft_model(base(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(StateError, match="cannot be merged"):
        export(prompts, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_other_methods_merge(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = tiny.scramble(get_peft_model(base(), config), 0.3).eval()
    export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5)


def test_what_is_refused_writes_nothing(tmp_path: Path, base_folder: Path) -> None:
    shutil.rmtree(base_folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("keep")
    with pytest.raises(StateError, match="is there and not empty"):
        export(view(), "merged", tmp_path / "full", tokenizer=TOKENIZER)
    with pytest.raises(ConfigError, match=r"to='mergd' is not allowed.*Did you mean 'merged'"):
        export(view(), "mergd", tmp_path / "out")
    for source, to in ((torch.nn.Linear(2, 2), "merged"), (base(), "peft")):
        with pytest.raises(ConfigError, match=r"expected a view \(get_peft_model\).*is merged or gguf"):
            export(source, to, tmp_path / "out")
    for changes in ({"dtype": "float32"}, {"base": "b"}):
        with pytest.raises(ConfigError, match="None for 'peft': the adapter stays as it is"):
            export(view(), "peft", tmp_path / "out", **changes)
    with pytest.raises(ConfigError, match=r"dtype='q8_0' is not allowed: expected one of \('float32', .* for 'merged'"):
        export(view(), "merged", tmp_path / "out", tokenizer=TOKENIZER, dtype="q8_0")
    with pytest.raises(MissingFileError, match="is not the folder of an adapter"):
        export(tmp_path / "full", "peft", tmp_path / "out")
    with pytest.raises(ConfigError, match="Pass the tokenizer, or False"):
        export(view(), "merged", tmp_path / "out")
    model = view()
    model.disable_adapters()
    model._inlay.active.set([])
    with pytest.raises(ConfigError, match="a view without an active adapter"):
        export(model, "merged", tmp_path / "out", tokenizer=TOKENIZER)
    view().save_pretrained(str(tmp_path / "full"))
    weights = tmp_path / "full" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptFileError):
        export(tmp_path / "full", "peft", tmp_path / "out", tokenizer=TOKENIZER)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert inlay.export is export


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(view(), "peft", tmp_path / "out", tokenizer=TOKENIZER)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
