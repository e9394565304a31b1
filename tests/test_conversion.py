"""Adapters in other forms: what they compute afterwards, what peft reads, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inlay import (
    AdaLoraConfig,
    BitFitConfig,
    HRAConfig,
    IA3Config,
    PeftModel,
    PromptEncoderConfig,
    convert,
    get_peft_model,
    inspect_adapter,
)
from inlay.config import config_classes
from inlay.conversion import NOT_IN_PEFT
from inlay.errors import (
    BaseMismatchError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    NumericsError,
    StateError,
    UnsafeFileError,
)
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, STATE_NAME, WEIGHTS_NAME, open_folder
from inlay.io.manifest import read_manifest
from tests.comparison.lm import TARGETS, TOKENIZER, base, lora, view
from tests.tiny import close, ids, scramble

PEFTS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft's use of transformers


def saved(folder: Path, config: Any) -> tuple[Path, torch.Tensor]:
    """An adapter's folder, with a tokenizer and files of training beside it, and the logits of its view."""
    made = scramble(get_peft_model(base(), config), 0.3).eval()
    made.save_pretrained(str(folder))
    TOKENIZER.save_pretrained(folder)
    (folder / "optimizer.pt").write_bytes(b"of training")
    (folder / "inlay_run.json").write_text("{}")
    return folder, made(ids(2, 5)).logits


def logits(folder: Path, **kwargs: Any) -> torch.Tensor:
    found: torch.Tensor = PeftModel.from_pretrained(base(), str(folder), **kwargs)(ids(2, 5)).logits
    return found


def pickled(folder: Path) -> Path:
    """The same adapter as peft wrote it once."""
    torch.save(load_file(folder / WEIGHTS_NAME), folder / PICKLE_NAME)
    (folder / WEIGHTS_NAME).unlink()
    (folder / MANIFEST_NAME).unlink()
    return folder


def test_to_peft_leaves_what_peft_has(tmp_path: Path) -> None:
    source, wanted = saved(tmp_path / "a", lora(rank_pattern={"q_proj": 2}))
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    made = convert(source, tmp_path / "b", "peft")
    names = {p.name for p in made.folder.iterdir()}
    assert {CONFIG_NAME, WEIGHTS_NAME, "README.md", "tokenizer.json"} <= names
    assert not names & {MANIFEST_NAME, STATE_NAME, "optimizer.pt", "inlay_run.json"}
    assert made.methods == ("LORA", "LORA") and made.rejections == [] and made.tensors == {"float32": 12}
    close(logits(made.folder), wanted)
    assert before == {p.name: p.read_bytes() for p in source.iterdir()}
    assert str(made).startswith(f"peft: {tmp_path / 'b'}\n  LORA\n") and "vLLM would load it" in str(made)


@pytest.mark.filterwarnings(PEFTS)
@pytest.mark.parametrize(
    "config",
    [lora(), lora(use_dora=True), lora(init_lora_weights="pissa"), IA3Config(task_type="CAUSAL_LM"), HRAConfig(r=2)],
)
def test_peft_reads_it(tmp_path: Path, config: Any) -> None:
    peft = pytest.importorskip("peft")
    source, wanted = saved(tmp_path / "a", config)
    made = convert(source, tmp_path / "b", "peft")
    theirs = peft.PeftModel.from_pretrained(base(), str(made.folder)).eval()
    close(theirs(ids(2, 5)).logits, wanted, 1e-4, 1e-4)
    assert any("the very same base" in note for note in made.notes) == (getattr(config, "anchored", False))


@pytest.mark.filterwarnings(PEFTS)
def test_from_peft_and_back_to_inlay(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(base(), config).eval()
    theirs.save_pretrained(str(tmp_path / "a"))
    made = convert(tmp_path / "a", tmp_path / "b", "inlay")
    files = open_folder(made.folder)
    assert files.verified and any("does not say which base" in note for note in made.notes)
    close(logits(made.folder), theirs(ids(2, 5)).logits)
    checked = convert(tmp_path / "a", tmp_path / "c", "inlay", base=base())
    manifest = read_manifest(checked.folder)
    assert manifest is not None and manifest["base"]["class"] == "LlamaForCausalLM"
    assert any("every tensor fits the base" in note for note in checked.notes)
    other = base()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.add_(1)
    with pytest.raises(BaseMismatchError):
        PeftModel.from_pretrained(other, str(checked.folder))


def test_to_inlay_keeps_what_the_manifest_said_and_the_training_state(tmp_path: Path) -> None:
    config = PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM")
    source, wanted = saved(tmp_path / "a", config)
    assert (source / STATE_NAME).is_file()
    made = convert(source, tmp_path / "b", "inlay")
    one, two = read_manifest(source), read_manifest(made.folder)
    assert one is not None and two is not None and one["base"] == two["base"]
    assert (made.folder / STATE_NAME).read_bytes() == (source / STATE_NAME).read_bytes()
    close(logits(made.folder, is_trainable=True), wanted)
    stripped = convert(source, tmp_path / "c", "peft")
    assert not (stripped.folder / STATE_NAME).exists() and any(STATE_NAME in note for note in stripped.notes)


def test_a_pickle_is_read_when_that_is_allowed(tmp_path: Path) -> None:
    source, wanted = saved(tmp_path / "a", lora())
    pickled(source)
    with pytest.raises(UnsafeFileError, match="allow_pickle=True"):
        convert(source, tmp_path / "b", "inlay")
    assert not (tmp_path / "b").exists()
    made = convert(source, tmp_path / "b", "inlay", allow_pickle=True)
    assert not (made.folder / PICKLE_NAME).exists() and (made.folder / WEIGHTS_NAME).is_file()
    assert made.notes[0] == "adapter_model.bin, a pickle, became adapter_model.safetensors"
    close(logits(made.folder), wanted)
    checked = convert(source, tmp_path / "c", "inlay", allow_pickle=True, base=base())
    assert inspect_adapter(checked.folder).healthy


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_is_a_program_is_refused_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, _ = saved(tmp_path / "a", lora())
    pickled(source)
    torch.save({"x": Evil()}, source / PICKLE_NAME)
    with pytest.raises(UnsafeFileError):
        convert(source, tmp_path / "b", "inlay", allow_pickle=True)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "b").exists()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_anchored_lora_becomes_a_plain_one_exactly(tmp_path: Path, init: str) -> None:
    source, wanted = saved(tmp_path / "a", lora(init_lora_weights=init))
    made = convert(source, tmp_path / "b", "lora", base=base())
    data = json.loads((made.folder / CONFIG_NAME).read_text())
    assert data["r"] == 8 and data["init_lora_weights"] is True and made.report is None
    assert made.rejections == [] and made.notes == ["exact: W + s (B A - B0 A0) is LoRA of twice the rank"]
    close(logits(made.folder), wanted, 1e-4, 1e-4)
    assert open_folder(made.folder).verified
    assert {"tokenizer.json", "inlay_run.json"} <= {p.name for p in made.folder.iterdir()}
    assert [p for p in made.folder.iterdir() if p.is_dir()] == []


def test_another_method_becomes_lora(tmp_path: Path) -> None:
    config = AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=TARGETS, task_type="CAUSAL_LM")
    source, wanted = saved(tmp_path / "a", config)
    made = convert(source, tmp_path / "b", "lora", rank=3, base=base())
    assert made.methods == ("ADALORA", "LORA") and "ADALORA as LORA" in str(made)
    assert made.report is not None and made.report.worst[1] < 1e-5 and made.notes == []
    close(logits(made.folder), wanted, 1e-4, 1e-4)
    rough = convert(source, tmp_path / "c", "lora", rank=1, base=base())
    assert rough.report is not None and rough.report.worst[1] > 0.1
    assert rough.notes == ["more than a tenth of a layer's change is lost: take a larger rank"]
    assert "approximation: 6 layers, rank 1; largest relative error" in str(rough)
    json.dumps(rough.to_dict(), allow_nan=False)


def test_a_lora_of_a_lower_rank(tmp_path: Path) -> None:
    source, _ = saved(tmp_path / "a", lora())
    made = convert(source, tmp_path / "b", "lora", rank=0.5, base=base())
    assert made.report is not None and max(made.report.ranks.values()) < 4


def test_the_base_is_the_one_that_the_adapter_names(tmp_path: Path) -> None:
    base().save_pretrained(tmp_path / "base")
    source, wanted = saved(tmp_path / "a", lora(init_lora_weights="olora"))
    with pytest.raises(MissingFileError, match="does not name its base"):
        convert(source, tmp_path / "b", "lora")
    close(logits(convert(source, tmp_path / "b", "lora", base=str(tmp_path / "base")).folder), wanted, 1e-4, 1e-4)
    data = json.loads((source / CONFIG_NAME).read_text())
    (source / MANIFEST_NAME).unlink()
    (source / CONFIG_NAME).write_text(json.dumps({**data, "base_model_name_or_path": str(tmp_path / "base")}))
    close(logits(convert(source, tmp_path / "c", "lora").folder), wanted, 1e-4, 1e-4)
    with pytest.raises(MissingFileError, match=r"The base '\./no' cannot be loaded"):
        convert(source, tmp_path / "d", "lora", base="./no")


@pytest.mark.parametrize(
    ("to", "arguments", "message"),
    [
        ("pefd", {}, r"to='pefd' is not allowed: expected one of inlay, peft, lora\. Did you mean 'peft'"),
        ("peft", {"rank": 3}, "rank=3 is not allowed: expected None for 'peft'"),
        ("peft", {"base": "b"}, "base='b' is not allowed: expected None for 'peft'"),
        ("lora", {}, "a rank such as 16, or a share of the energy such as 0.99. The adapter is LoRA already"),
        ("lora", {"rank": -2, "base": base()}, "rank=-2 is not allowed"),
    ],
)
def test_what_is_refused_writes_nothing(tmp_path: Path, to: str, arguments: dict[str, Any], message: str) -> None:
    source, _ = saved(tmp_path / "a", lora())
    with pytest.raises(ConfigError, match=message):
        convert(source, tmp_path / "b", to, **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_is_overwritten_and_damage_not_carried_on(tmp_path: Path) -> None:
    source, _ = saved(tmp_path / "a", lora())
    with pytest.raises(StateError, match="is there and not empty"):
        convert(source, source, "inlay")
    with pytest.raises(MissingFileError):
        convert(tmp_path / "no", tmp_path / "b", "inlay")
    data = bytearray((source / WEIGHTS_NAME).read_bytes())
    data[-1] ^= 1
    (source / WEIGHTS_NAME).write_bytes(data)
    with pytest.raises(CorruptFileError):
        convert(source, tmp_path / "b", "peft")
    (source / MANIFEST_NAME).unlink()
    tensors = load_file(source / WEIGHTS_NAME)
    next(iter(tensors.values()))[0, 0] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, source / WEIGHTS_NAME)
    with pytest.raises(NumericsError):
        convert(source, tmp_path / "b", "inlay")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.filterwarnings(PEFTS)
def test_methods_that_peft_has_not(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    assert set(NOT_IN_PEFT) == config_classes().keys() - {kind.value for kind in peft.PeftType}
    get_peft_model(base(attention_bias=True), BitFitConfig(task_type="CAUSAL_LM")).save_pretrained(str(tmp_path / "a"))
    with pytest.raises(ConfigError, match="another form: peft has no method BITFIT"):
        convert(tmp_path / "a", tmp_path / "b", "peft")


def test_the_views_helper_is_not_changed(tmp_path: Path) -> None:
    """A base that is given stays as it was."""
    model = base()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source = tmp_path / "a"
    view(model).save_pretrained(str(source))
    convert(source, tmp_path / "b", "lora", rank=2, base=model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
