"""Keys for several processes: what is refused, what Trainer is given, and the files that are shipped for launchers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from inlay.errors import ConfigError, MissingExtraError, MissingFileError, StateError
from inlay.recipe.recipe import Recipe
from inlay.train.arguments import training_arguments
from inlay.train.parallel import check_layers, check_processes, effective, own_environment, sharding, sharding_arguments
from inlay.train.training import train
from tests.train import tiny

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
LEAST = {"model.name": "m", "data.train": "d.jsonl", "out": "runs/x", "train.device": "cpu"}


def make(**changes: Any) -> Recipe:
    return Recipe.make({**LEAST, **changes})


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parallel.fsdp": "full"}, "parallel.fsdp='full' is not allowed: expected 'none', 'full_shard' or"),
        (
            {"parallel.fsdp": "full_shard", "parallel.deepspeed": "x.json"},
            "parallel.fsdp and parallel.deepspeed exclude each other: take one of them away.",
        ),
        ({"parallel.wrap": "LlamaDecoderLayer"}, "parallel.wrap needs parallel.fsdp: full_shard or shard_grad_op."),
        ({"parallel.cpu_offload": True}, "parallel.cpu_offload needs parallel.fsdp: full_shard or shard_grad_op."),
        (
            {"adapter.method": "adalora", "parallel.deepspeed": "x.json"},
            "adapter.method='adalora' compares all of its factors, which parallel.deepspeed cuts up: leave that out,",
        ),
        (
            {"model.quantize": "nf4", "parallel.fsdp": "full_shard"},
            "model.quantize='nf4' cannot be cut up by parallel.fsdp: leave that out,",
        ),
        ({"train.bf16": True}, "train.bf16 is not a key of a recipe. Did you mean 'train.precision'?"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert str(caught.value).removeprefix("the recipe: ").startswith(sentence)


def test_one_process_cuts_nothing_up(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"parallel.fsdp": "full_shard"})
    with pytest.raises(ConfigError, match=r"over processes, and this is one. Start several, e.g. torchrun --nproc_per"):
        train(recipe, say=lambda line: None)
    assert not Path(recipe.out).exists()


def test_processes_that_are_not_joined_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = SimpleNamespace(world_size=1)
    with pytest.raises(
        StateError, match=r"2 processes were started \(WORLD_SIZE\), but accelerate joined 1: each would"
    ):
        check_processes(make(), arguments)


def test_cpus_cut_nothing_up() -> None:
    arguments = SimpleNamespace(
        world_size=1, distributed_state=SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    )
    with pytest.raises(ConfigError, match="FSDP cuts a base up over GPUs, and these processes have none"):
        check_processes(make(**{"parallel.fsdp": "full_shard"}), arguments)
    check_processes(make(), arguments)


def test_the_layers_are_the_bases(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "base"))
    check_layers(make(**{"parallel.fsdp": "full_shard", "parallel.wrap": "LlamaDecoderLayer"}), base)
    with pytest.raises(ConfigError, match=r"whose layers are: LlamaDecoderLayer. Did you mean 'LlamaDecoderLayer'"):
        check_layers(make(**{"parallel.fsdp": "full_shard", "parallel.wrap": "LlamaLayer"}), base)


def test_what_trainer_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # transformers sets it: here it is taken back
    how = {"parallel.fsdp": "shard_grad_op", "parallel.wrap": "LlamaDecoderLayer", "parallel.cpu_offload": True}
    with monkeypatch.context() as two:
        two.setenv("WORLD_SIZE", "2")
        given = sharding_arguments(make(**how))
    plugin = FullyShardedDataParallelPlugin(**TrainingArguments(str(tmp_path), use_cpu=True, **given).fsdp_plugin_args)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is False
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    assert type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy"
    assert sharding_arguments(make()) == {}


def test_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**changes: Any) -> str:
        return str(training_arguments(make(**changes), tmp_path).mixed_precision)

    assert of() == of(**{"train.precision": "float32", "train.tf32": True}) == "no"
    assert of(**{"train.precision": "bfloat16"}) == "bf16"
    with pytest.raises(ConfigError, match=r"train.precision='float16' needs a GPU"):
        of(**{"train.precision": "float16"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # of accelerate launch
    assert of() == of(**{"train.precision": "bfloat16"}) == "bf16"
    with pytest.raises(ConfigError, match="precision='float32', but accelerate's launcher was told bfloat16: take one"):
        of(**{"train.precision": "float32"})


def test_deepspeeds_file_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    recipe = make(**{"parallel.deepspeed": str(tmp_path / "no.json")})
    with pytest.raises((MissingFileError, MissingExtraError)) as caught:
        training_arguments(recipe, tmp_path)
    assert "there is no file" in str(caught.value) or "pip install 'inlay[deepspeed]'" in str(caught.value)


def test_recipe_and_launcher_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding(make()) is None
    assert sharding(make(**{"parallel.fsdp": "full_shard"})) == "fsdp"
    with own_environment():
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        assert sharding(make()) == sharding(make(**{"parallel.fsdp": "full_shard"})) == "fsdp"
        with pytest.raises(ConfigError, match=r"has parallel.deepspeed, and accelerate's launcher was told fsdp:"):
            sharding(make(**{"parallel.deepspeed": "x.json"}))
    assert "ACCELERATE_USE_FSDP" not in os.environ


def test_the_effective_batch_is_said() -> None:
    recipe = make(**{"train.batch": 4, "train.accumulation": 4})
    assert effective(recipe, 2, 310) == "effective batch 32 = 4 rows x 4 passes x 2 processes, 310 steps"
    packed = make(**{"train.batch": 1, "train.accumulation": 4, "data.packing": True})
    assert effective(packed, 1, 9) == "effective batch 4 = 1 packs x 4 passes, 9 steps"


@pytest.mark.parametrize(("name", "kind"), [("ddp", DistributedType.MULTI_GPU), ("fsdp2", DistributedType.FSDP)])
def test_accelerate_reads_the_files_for_it(name: str, kind: DistributedType) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type == kind and config.num_processes == 2 and config.mixed_precision == "no"
    assert "-m inlay train recipe.yaml" in (LAUNCH / f"{name}.yaml").read_text()
    if name == "fsdp2":
        known = FullyShardedDataParallelPlugin.__dataclass_fields__.keys() | {"offload_params"}
        assert {key.removeprefix("fsdp_") for key in config.fsdp_config} - {"version"} <= known
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_deepspeed_reads_the_files_for_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    values = json.loads((LAUNCH / f"deepspeed_{name}.json").read_text())
    assert values["zero_optimization"]["stage"] == int(name[4])
    # what is not the flags' to say
    assert {values[k] for k in ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu")} == {"auto"}
    assert "optimizer" not in values and "scheduler" not in values
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    values = {k: v for k, v in values.items() if v != "auto" and k not in ("bf16", "fp16")} | {"train_batch_size": 4}
    zero = {k: v for k, v in values["zero_optimization"].items() if v != "auto"}
    read = DeepSpeedConfig({**values, "zero_optimization": zero})
    assert read.zero_optimization_stage == int(name[4])
    assert bool(read.zero_config.offload_param) == (name == "zero3_offload")
