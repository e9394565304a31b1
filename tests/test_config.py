"""Configs in general: PeftType, TaskType, files in and out, unknown and unsupported fields."""

from __future__ import annotations

import copy
import json
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inlay import AdapterConfig, IA3Config, InlayWarning, LoraConfig, PeftConfig, PeftType, TaskType
from inlay import config as module
from inlay.config import FILE_FORMAT, config_class, config_classes
from inlay.errors import ConfigError, CorruptFileError, FileError, InlayError, MissingFileError, VersionError


def write(folder: Path, text: str | bytes) -> Path:
    (folder / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def data(**fields: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", **fields}


REQUIRED: dict[str, dict[str, Any]] = {"ADALORA": {"total_step": 10}}  # fields that have no default

# ---------------------------------------------------------------------- types


def test_peft_types_are_strings_one_per_method() -> None:
    assert PeftType.LORA == "LORA" == PeftType.LORA.value == PeftType.LORA.name == str(PeftType.LORA)
    assert isinstance(PeftType.LORA, str) and isinstance(PeftType.LORA, PeftType)
    assert set(PeftType) == set(config_classes()) and all(isinstance(t, PeftType) for t in PeftType)
    assert json.dumps({"t": PeftType.LORA}) == '{"t": "LORA"}'
    assert {PeftType.LORA: 1}["LORA"] == 1
    assert type(copy.deepcopy(PeftType.LORA)) is PeftType and pickle.loads(pickle.dumps(PeftType.LORA)) == "LORA"
    assert LoraConfig().peft_type is LoraConfig.peft_type and LoraConfig.peft_type == PeftType.LORA
    with pytest.raises(AttributeError, match=r"PeftType has no member 'LORRA'; known: .*LORA"):
        _ = PeftType.LORRA
    assert not hasattr(PeftType, "_x") and not hasattr(PeftType, "NOPE")


def test_task_types_are_names_or_members() -> None:
    for task in ("CAUSAL_LM", TaskType.CAUSAL_LM):
        config = LoraConfig(task_type=task)
        assert config.task_type is TaskType.CAUSAL_LM and config.task_type == "CAUSAL_LM"
        assert config.to_dict()["task_type"] == "CAUSAL_LM"
        assert type(config.to_dict()["task_type"]) is str
    assert LoraConfig().task_type is None and "task_type" not in LoraConfig().to_dict()
    assert {t.value for t in TaskType} == {
        "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
    }  # fmt: skip


def test_every_registered_class_is_found_by_its_type() -> None:
    for name, cls in config_classes().items():
        assert config_class(name) is config_class(name.lower()) is config_class(PeftType(name)) is cls
        assert cls.peft_type == name
        assert isinstance(PeftConfig.from_peft_type(name, **REQUIRED.get(name, {})), cls)


@pytest.mark.parametrize("wrong", ["LORRA", "", None, 3, [], "lora\n"])
def test_40_an_unknown_type_is_an_error_that_lists_the_known(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"peft_type=.* is not allowed: expected one of .*LORA") as caught:
        config_class(wrong)
    assert caught.value.field == "peft_type"
    with pytest.raises(ConfigError, match="peft_type"):
        PeftConfig.from_dict({"peft_type": wrong})
    if wrong == "LORRA":
        assert "Did you mean 'LORA'" in str(caught.value)


def test_40_no_type_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"peft_type=None.*not an adapter_config.json"):
        PeftConfig.from_dict({"r": 8})
    assert LoraConfig.from_dict({"r": 4}).r == 4


def test_a_file_of_another_method_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLASSES", dict(config_classes()))

    @dataclass
    class OtherConfig(AdapterConfig, peft_type="OTHER"):
        pass

    assert PeftType.OTHER == "OTHER" and PeftConfig.from_dict({"peft_type": "OTHER"}) == OtherConfig()
    with pytest.raises(ConfigError, match="The config is a OTHER one; LoraConfig cannot hold it"):
        LoraConfig.from_dict({"peft_type": "OTHER"})


# ---------------------------------------------------------------------- fields of every method


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("task_type", "CAUSAL", "one of 'SEQ_CLS'"),
        ("task_type", 3, "one of"),
        ("task_type", ["CAUSAL_LM"], "one of"),
        ("base_model_name_or_path", 3, "a string or None"),
        ("revision", b"main", "a string or None"),
        ("inference_mode", 1, "True or False"),
        ("inference_mode", "true", "True or False"),
        ("inference_mode", None, "True or False"),
        ("auto_mapping", "x", "a dict of strings or None"),
        ("auto_mapping", {"a": 1}, "a dict of strings"),
        ("auto_mapping", {1: "a"}, "a dict of strings"),
        ("auto_mapping", [["a", "b"]], "a dict of strings"),
        ("target_modules", 3, "a list of names or one string"),
        ("target_modules", "", "a list of names or one string"),
        ("target_modules", [""], "a list of names"),
        ("target_modules", ["a", 3], "a list of names"),
        ("target_modules", {1, "a"}, "a list of names"),
        ("target_modules", {"a": 1}, "a list of names"),
        ("target_modules", b"q_proj", "a list of names"),
        ("target_modules", True, "a list of names"),
        ("exclude_modules", 3, "a list of names or one string"),
        ("exclude_modules", [None], "a list of names"),
        ("modules_to_save", "classifier", r"a list of names\."),
        ("modules_to_save", [3], r"a list of names\."),
        ("layers_pattern", 3, "a list of names or one string"),
        ("layers_to_transform", -1, "an integer of at least 0"),
        ("layers_to_transform", [0, -1], "an integer of at least 0"),
        ("layers_to_transform", "1", "an integer of at least 0"),
        ("layers_to_transform", ["1"], "an integer of at least 0"),
        ("layers_to_transform", 1.0, "an integer of at least 0"),
        ("layers_to_transform", [1.0], "an integer of at least 0"),
        ("layers_to_transform", True, "an integer of at least 0"),
        ("layers_to_transform", {1: 2}, "an integer of at least 0"),
    ],
)
def test_25_bad_values_name_field_value_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}=.* is not allowed: expected .*{allowed}") as caught:
        LoraConfig(**{field: value})
    assert caught.value.field == field
    with pytest.raises(ConfigError):
        PeftConfig.from_dict(data(**{field: value}) if value is not None else data(inference_mode=3))


def test_fields_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r"layers_to_transform=\[1\].*None when target_modules is a string.*regex"):
        LoraConfig(target_modules="q.*", layers_to_transform=[1])
    with pytest.raises(ConfigError, match=r"layers_pattern='h'.*None unless layers_to_transform is given"):
        LoraConfig(layers_pattern="h")


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("target_modules", {"v", "q"}, ["q", "v"]),
        ("target_modules", ("v", "q"), ["v", "q"]),
        ("target_modules", frozenset("ba"), ["a", "b"]),
        ("target_modules", dict.fromkeys("ba").keys(), ["b", "a"]),
        ("modules_to_save", {"b", "a"}, ["a", "b"]),
        ("layers_to_transform", range(3), [0, 1, 2]),
        ("layers_to_transform", {3, 1}, [1, 3]),
        ("layers_to_transform", (3, 1), [3, 1]),
        ("layers_to_transform", 0, 0),
    ],
)
def test_collections_become_lists_and_sets_sorted_ones(field: str, given: Any, kept: Any) -> None:
    config = LoraConfig(**{field: given})
    assert getattr(config, field) == kept and type(getattr(config, field)) is type(kept)
    assert json.loads(json.dumps(config.to_dict()))[field] == kept


def test_a_config_keeps_its_own_copy_of_a_list() -> None:
    names = ["q"]
    config = LoraConfig(target_modules=names)
    names.append("v")
    assert config.target_modules == ["q"]
    twin = config.copy()
    twin.target_modules.append("v")
    assert config.target_modules == ["q"] and config.replaced(r=3).r == 3 and config.r == 8


# ---------------------------------------------------------------------- files

FULL = {
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "some/base",
    "revision": "main",
    "inference_mode": True,
    "auto_mapping": {"base_model_class": "X", "parent_library": "y"},
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": ["head"],
    "layers_to_transform": [1, 2],
    "layers_pattern": "layers",
    "modules_to_save": ["classifier"],
}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = LoraConfig(**FULL)  # type: ignore[arg-type]
    config.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(text) == {**config.to_dict(), "inference_mode": True}
    for cls in (PeftConfig, LoraConfig):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is LoraConfig and again == config
    assert LoraConfig.from_json_file(str(tmp_path / "adapter_config.json")) == json.loads(text)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_config.json").read_text() == text


def test_what_to_dict_says_makes_the_config_again() -> None:
    """As diffusers reads the config that it has put into a file."""
    config = LoraConfig(r=3, target_modules=["a"])
    assert LoraConfig(**config.to_dict()) == config
    with pytest.raises(ConfigError, match="peft_type='IA3' is not allowed: expected LORA"):
        LoraConfig(**{**config.to_dict(), "peft_type": "IA3"})


def test_settings_of_a_run_make_no_difference() -> None:
    from inlay.peft.lora import LoraRuntimeConfig

    assert LoraConfig(r=4, runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=True)) == LoraConfig(r=4)
    with pytest.raises(TypeError, match="runtime_config"):
        IA3Config(runtime_config=None)


def test_a_saved_config_is_for_inference_and_the_one_in_memory_is_not(tmp_path: Path) -> None:
    config = LoraConfig()
    config.save_pretrained(tmp_path)
    assert config.inference_mode is False and LoraConfig.from_pretrained(tmp_path).inference_mode is True


def test_what_stands_in_a_file() -> None:
    written = LoraConfig(target_modules={"b", "a"}).to_dict()
    assert written["peft_type"] == "LORA" and written["peft_version"] == FILE_FORMAT
    assert type(written["peft_type"]) is str and written["target_modules"] == ["a", "b"]
    assert None not in written.values() and "unknown" not in written and "unsupported" not in written


def test_arguments_override_the_file(tmp_path: Path) -> None:
    LoraConfig(r=4).save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path, inference_mode=False, r=6)
    assert config.r == 6 and config.inference_mode is False  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"field='rr' is not allowed: expected a field of LoraConfig"):
        PeftConfig.from_pretrained(tmp_path, rr=6)
    with pytest.raises(ConfigError, match="Did you mean 'lora_dropout'"):
        PeftConfig.from_pretrained(tmp_path, lora_dropuot=0.1)


def test_a_subfolder(tmp_path: Path) -> None:
    LoraConfig(r=4).save_pretrained(tmp_path / "x")
    assert PeftConfig.from_pretrained(tmp_path, subfolder="x").r == 4  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="subfolder"):
        PeftConfig.from_pretrained(tmp_path / "x", subfolder="../x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        '{"peft_type": "LORA"',
        '{"peft_type": "LORA", "r": }',
        b"\xff\xfe{\x00}\x00",
        "[1, 2]",
        '"LORA"',
        "null",
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"peft_type": "LORA", "x": ' + "[" * 200 + "]" * 200 + "}",
        '{"peft_type": "LORA", "r": 8, "r": 4}',
        '{"peft_type": "LORA", "lora_alpha": NaN}',
        '{"peft_type": "LORA", "lora_alpha": Infinity}',
        '{"peft_type": "LORA", "lora_alpha": 1e999}',
        '{"peft_type": "LORA", "lora_alpha": 1e308}',
        '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}",
        '{"peft_type": "LORA", "r": "4"}',
        '{"peft_type": "LORA", "lora_dropout": 2}',
        '{"r": 4}',
        '{"peft_type": "NOPE"}',
        '{"peft_type": null}',
        '{"peft_type": "LORA", "task_type": "NOPE"}',
    ],
    ids=lambda text: repr(text[:40]),
)
def test_21_to_25_bad_files_are_typed_errors(text: str | bytes, tmp_path: Path) -> None:
    start = time.thread_time()
    with pytest.raises((ConfigError, CorruptFileError)) as caught:
        PeftConfig.from_pretrained(write(tmp_path, text))
    assert isinstance(caught.value, InlayError) and len(str(caught.value)) < 600
    assert time.thread_time() - start < 2


def test_21_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    config = PeftConfig.from_pretrained(write(tmp_path, b'\xef\xbb\xbf{"peft_type": "LORA", "r": 3}'))
    assert config.r == 3  # type: ignore[attr-defined]


def test_26_no_file_or_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("network"))
    with pytest.raises(MissingFileError, match=r"has no adapter_config.json"):
        PeftConfig.from_pretrained(tmp_path)
    for missing in (tmp_path / "none", "./none", "/none/at/all", "~/none"):
        with pytest.raises(MissingFileError, match="is not a folder"):
            PeftConfig.from_pretrained(missing)
    (tmp_path / "adapter_config.json").mkdir()
    with pytest.raises(FileError):
        PeftConfig.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- what this version does not know


def test_39_unknown_fields_warn_and_are_kept(tmp_path: Path) -> None:
    fields = data(r=4, from_the_future={"a": [1]}, another=None)
    with pytest.warns(InlayWarning, match=r"Unknown fields \['another', 'from_the_future'\] in a LORA config are kept"):
        config = PeftConfig.from_pretrained(write(tmp_path, json.dumps(fields)))
    assert config.unknown == {"from_the_future": {"a": [1]}, "another": None}
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert again["from_the_future"] == {"a": [1]} and again["r"] == 4
    assert config.copy().unknown == config.unknown


def test_39_unless_the_file_says_that_they_matter() -> None:
    with pytest.raises(VersionError, match=r"needs \['from_the_future'\] to be understood; update Inlay"):
        PeftConfig.from_dict(data(from_the_future=1, must_understand=["from_the_future", "r"]))
    assert PeftConfig.from_dict(data(r=4, must_understand=["r"])).r == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [5, "r", [1], {"a": 1}, [[1]]])
def test_39_a_list_of_fields_that_is_none(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="must_understand"):
        PeftConfig.from_dict(data(must_understand=wrong, new=1))


UNSUPPORTED = [(cls, n, v) for cls in config_classes().values() for n, v in cls.unsupported.items()]


@pytest.mark.parametrize(("cls", "name", "neutral"), UNSUPPORTED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_features_that_are_not_implemented_may_be_off_and_not_on(cls: Any, name: str, neutral: Any) -> None:
    given = {"peft_type": cls.peft_type, **REQUIRED.get(cls.peft_type, {})}
    for value in (neutral, None):
        config = PeftConfig.from_dict({**given, name: value})
        assert config == cls(**REQUIRED.get(cls.peft_type, {})) and name not in config.to_dict()
    for value in ("something", ["x"], {"x": 1}, 77):
        with pytest.raises(ConfigError, match=rf"{name}=.*{cls.__name__} does not implement `{name}` in this version"):
            PeftConfig.from_dict({**given, name: value})
    assert name not in {f.name for f in cls.__dataclass_fields__.values()}


@pytest.mark.parametrize(
    "fields",
    [
        {"trust_remote_code": True},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"x": [{"trust_remote_code": False}]},
    ],
)
def test_07_trust_is_never_read_from_a_file(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"trust_remote_code: .* never read from a file.*as an argument"):
        PeftConfig.from_dict(data(**fields))


def test_06_names_of_libraries_in_a_file_are_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import importlib

    real = importlib.import_module
    seen: list[str] = []
    monkeypatch.setattr(importlib, "import_module", lambda name, *a: (seen.append(name), real(name, *a))[1])
    monkeypatch.setattr(builtins, "eval", lambda *_: pytest.fail("eval"))
    config = PeftConfig.from_dict(data(auto_mapping={"base_model_class": "X", "parent_library": "evilmod.sub"}))
    assert config.auto_mapping == {"base_model_class": "X", "parent_library": "evilmod.sub"}
    assert not [name for name in seen if "evilmod" in name]
