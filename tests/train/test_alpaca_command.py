"""The commands of docs/alpaca.md: parsed out of the page, and run with two processes on the CPU."""

from __future__ import annotations

import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from typer.main import get_command

from inlay.cli.recipes import recipe_command
from inlay.runs.run import Run
from inlay.train.training import train
from tests.train import tiny
from tests.train.test_several import ROOT, torchrun

PAGE = (ROOT / "docs" / "alpaca.md").read_text()
PROMPTS = {  # of Alpaca's paper and data
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    False: "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:",
}


def commands() -> list[list[str]]:
    """The indented commands of the page: Alpaca's, ours, ours with DeepSpeed."""
    found = re.findall(r"^    torchrun (?:.*\\\n)+.*$", PAGE, re.MULTILINE)
    return [shlex.split(text.replace("\\\n", " ")) for text in found]


def parsed(words: list[str]) -> Any:
    """The recipe that `inlay train` makes of a documented command."""
    made = []
    app = recipe_command(lambda recipe: made.append(recipe))
    get_command(app).main(words[words.index("train") + 1 :], prog_name="train", standalone_mode=False)
    return made[0]


def without(words: list[str], *flags: str) -> list[str]:
    """The command without flags that have a value."""
    gone = {at + step for at, word in enumerate(words) if word in flags for step in (0, 1)}
    return [word for at, word in enumerate(words) if at not in gone]


def put(words: list[str], **values: str) -> list[str]:
    """The command with other values."""
    for name, value in values.items():
        at = words.index(f"--{name}")
        words = [*words[: at + 1], value, *words[at + 2 :]]
    return words


def test_the_page_translates_every_flag_once() -> None:
    theirs, ours, _ = commands()
    table = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]
    left = [cell[0].strip().strip("`").split(" ")[0].rstrip("`,") for cell in table]
    assert len(left) == len(set(left))
    assert [w for w in theirs if w.startswith("--") and "=" not in w and w not in left] == []
    translated = " ".join(cell[1] for cell in table)
    own = [w for w in ours if w.startswith("--") and "=" not in w]
    assert [w for w in own if f"`{w}" not in translated and w != "--method"] == []


def test_both_commands_are_the_same_recipe_but_for_what_cuts_the_base_up() -> None:
    _, fsdp, deepspeed = (parsed(words).resolved() if "--method" in words else None for words in commands())
    assert fsdp is not None and deepspeed is not None
    assert fsdp["train"] | {"precision": "bfloat16", "tf32": True, "lr": 2e-5, "epochs": 3.0} == fsdp["train"]
    first, second = fsdp.pop("parallel"), deepspeed.pop("parallel")
    assert fsdp == deepspeed
    assert first == {"fsdp": "full_shard", "wrap": "LlamaDecoderLayer", "cpu_offload": False, "deepspeed": None}
    assert (ROOT / second["deepspeed"]).is_file()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama without dropout, and rows."""
    place = tmp_path_factory.mktemp("alpaca")
    config = tiny.base(place / "llama") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.0}))
    lines = tiny.rows(place / "rows.jsonl", 64).read_text().splitlines()
    (place / "alpaca_data.json").write_text(json.dumps([json.loads(line) for line in lines]))
    return place


def fitted(words: list[str], place: Path, out: str) -> list[str]:
    """Ours with this place's paths and sizes, and in float32, whose results can be compared."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = put(words, model=str(place / "llama"), data=str(place / "alpaca_data.json"), out=str(place / out))
    words = put(words, accumulation="2", precision="float32")
    changed = {"--nproc_per_node=4": "--nproc_per_node=2", "--master_port=29500": f"--master_port={port}"}
    assert set(changed) <= set(words)
    return [changed.get(word, word) for word in words]


def plain(place: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """What Alpaca's train.py does, in one process with as many rows a step: losses and weights."""
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(place / "llama", model_max_length=512, padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(place / "llama", dtype=torch.float32)
    rows = []
    for row in json.loads((place / "alpaca_data.json").read_text()):
        source = PROMPTS[bool(row["input"])].format_map(row)
        ids, length = (
            tokenizer(source + row["output"] + tokenizer.eos_token).input_ids,
            len(tokenizer(source).input_ids),
        )
        rows.append({"input_ids": torch.tensor(ids), "labels": torch.tensor([-100] * length + ids[length:])})

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids, labels = (
            pad_sequence([row[key] for row in batch], batch_first=True, padding_value=value)
            for key, value in (("input_ids", -1), ("labels", -100))
        )
        return {"input_ids": ids.clamp(min=0), "labels": labels, "attention_mask": ids.ne(-1)}

    arguments = TrainingArguments(
        str(place / "plain"),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        save_strategy="no",
        learning_rate=2e-5,
        weight_decay=0.0,
        warmup_steps=0.03,
        lr_scheduler_type="cosine",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def test_two_processes_train_what_one_does_and_what_alpacas_script_does(place: Path) -> None:
    _, words, _ = commands()
    torchrun_, *rest = fitted(without(words, "--fsdp", "--wrap"), place, "two")
    assert torchrun_ == "torchrun"
    torchrun(*rest)
    sharded = fitted(words, place, "sharded")
    at = sharded.index("inlay")
    torchrun(*sharded[1:at], "tests.train.several", "--shard", *sharded[at + 1 :])  # accelerate shards on no CPU
    alone = parsed(put(fitted(without(words, "--fsdp", "--wrap"), place, "one"), accumulation="4"))
    train(alone, say=lambda line: None)

    losses, weights = plain(place)
    before = AutoModelForCausalLM.from_pretrained(place / "llama").state_dict()
    assert max(float((weights[n] - before[n]).abs().max()) for n in weights) > 5e-5  # else all would be alike
    for name in ("one", "two", "sharded"):
        run = Run.open(place / name)
        found = [line["loss"] for line in run.metrics() if "loss" in line]
        assert len(found) == 12 and found == pytest.approx(losses, abs=1e-5), name
        trained = tiny.weights(run.adapter)
        for key, tensor in trained.items():
            assert torch.allclose(tensor, weights[key], atol=2e-6), (name, key)
    assert Run.open(place / "sharded").environment["sharded"] == "fsdp"
