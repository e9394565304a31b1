"""Every key of a recipe is a flag, and says the same as in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from inlay import cli
from inlay.cli.flags import flags
from inlay.errors import ConfigError
from inlay.io.plain import write_yaml
from inlay.recipe.recipe import Recipe, keys
from inlay.recipe.sections import methods

SRC = Path(__file__).parents[2] / "src"
BASE = {"model.name": "m", "data.train": "d.jsonl", "out": "o"}
# a value for each key, as a file has it and as it is typed, where the rule of `typed` below is not enough
VALUES: dict[str, tuple[Any, list[str]]] = {
    "out": ("elsewhere", ["elsewhere"]),
    "model.name": ("1", ["1"]),
    "data.eval": (0.25, ["0.25"]),
    "data.columns": ({"input": "context", "output": "a=b"}, ["input=context", "output=a=b"]),
    "adapter.method": ("ia3", ["ia3"]),
    "watch.prompts": (["--one, two", "3"], ["--one, two", "3"]),
    "train.early_stopping": (3, ["3"]),
    "train.eval_every": (50, ["50"]),
    "train.warmup": (7.0, ["7"]),
    "parallel.deepspeed": ("ds.json", ["ds.json"]),
    "report.trackers": (["wandb", "tensorboard"], ["wandb", "tensorboard"]),
    "report.html": (False, ["false"]),
}
# keys that need others
NEED: dict[str, dict[str, Any]] = {
    **{key: {"data.eval": 0.1} for key in ("train.early_stopping", "train.eval_every")},
    **{key: {"parallel.fsdp": "full_shard"} for key in ("parallel.wrap", "parallel.cpu_offload")},
}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives the recipe that `inlay train` would be run with."""
    seen: list[Recipe] = []
    import inlay.train.training

    monkeypatch.setattr(inlay.train.training, "train", lambda recipe, fresh: seen.append(recipe))

    def of(*args: Any) -> Recipe:
        with pytest.raises(SystemExit) as caught:
            cli.main(["--debug", "train", *map(str, args)])
        assert not caught.value.code
        return seen.pop()

    return of


def file(folder: Path, **values: Any) -> Path:
    write_yaml(folder / "recipe.yaml", {**BASE, **values})
    return folder / "recipe.yaml"


def typed(flag: Any) -> tuple[Any, list[str]]:
    """A value that is allowed and no default, and how it is typed."""
    if flag.key in VALUES:
        return VALUES[flag.key]
    if flag.switch:
        return True, [""]
    if list in flag.kinds:
        return ["one", "two"], ["one", "two"]
    if int in flag.kinds:
        return 5, ["5"]
    if float in flag.kinds:
        return 0.5, ["0.5"]
    if str in flag.kinds:
        return "text", ["text"]
    return flag.kinds[-1], [flag.kinds[-1]]


def test_every_key_has_one_flag_and_no_two_share_one() -> None:
    found = flags()
    assert sorted(flag.key for flag in found) == sorted(keys())
    spelled = Counter(name for f in found for name in {f.name, f.key, *([f"no-{f.name}"] if f.switch else [])})
    assert max(spelled.values()) == 1
    names = {flag.key: flag.name for flag in found}
    assert [names[key] for key in ("train.lr", "data.max_length", "model.name", "data.train", "out")] == [
        *("lr", "max-length", "model", "data", "out")
    ]
    assert [names[key] for key in ("data.eval", "adapter.method", "report.trackers", "watch.prompts")] == [
        *("eval", "method", "report-to", "watch")
    ]


def test_every_flag_says_what_it_is() -> None:
    for flag in flags():
        assert flag.help[:1].isupper() and len(flag.help) > 12, flag.key


@pytest.mark.parametrize("long", [False, True], ids=["flag", "key"])
@pytest.mark.parametrize("flag", flags(), ids=lambda flag: flag.key)
def test_a_flag_is_the_key_in_the_file(tmp_path: Path, recipe: Any, flag: Any, long: bool) -> None:
    value, texts = typed(flag)
    needed = NEED.get(flag.key, {})
    by_file = Recipe.make({**BASE, **needed, flag.key: value})
    name = f"--{flag.key if long else flag.name}"
    line = [name if text == "" else f"{name}={text}" for text in texts]
    by_flag = recipe(file(tmp_path, **needed), *line)
    assert by_flag == by_file and by_flag.model_dump() == by_file.model_dump()
    assert by_flag != Recipe.make({**BASE, **needed}), "the value is not the default"


def test_flags_win_over_the_file_and_set_over_flags(tmp_path: Path, recipe: Any) -> None:
    path = file(tmp_path, **{"train.lr": 1e-5, "train.batch": 2, "data.packing": True, "data.eval": 0.1})
    found = recipe(path, "--lr", "3e-4", "--set", "train.batch=7", "--batch", 9)
    assert (found.train.lr, found.train.batch, found.data.packing) == (3e-4, 7, True)
    assert recipe(path, "--no-packing").data.packing is False
    assert recipe(path, "--eval", "null").data.eval is None
    assert recipe(path, "--eval", "null", "--lr", "null").train.lr is None
    assert recipe(path, "--eval", "held_out.jsonl").data.eval == "held_out.jsonl"


@pytest.mark.parametrize(
    "spelled",
    [["--max_length", "64"], ["--max-length=64"], ["--data.max-length", "64"], ["--data.max_length=64"]],
    ids=" ".join,
)
def test_dashes_and_underscores_are_the_same(tmp_path: Path, recipe: Any, spelled: list[str]) -> None:
    assert recipe(*spelled, file(tmp_path)).data.max_length == 64


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        (["--packing"], True),
        (["--packing", "True"], True),
        (["--packing=true"], True),
        (["--packing", "false"], False),
        (["--no-packing"], False),
        (["--no-data.packing"], False),
        (["--packing", "--no-packing"], False),
    ],
)
def test_switches(tmp_path: Path, recipe: Any, spelled: list[str], value: bool) -> None:
    assert recipe(*spelled, file(tmp_path)).data.packing is value


def test_fields_of_the_method_are_flags(tmp_path: Path, recipe: Any) -> None:
    path = file(tmp_path)
    found = recipe(path, "--r", 8, "--adapter.lora_alpha", "-4.5", "--use-rslora", "--lora-dropout=0.1")
    assert found.adapter.fields == {
        "r": 8,
        "lora_alpha": -4.5,
        "target_modules": "all-linear",
        "use_rslora": True,
        "lora_dropout": 0.1,
    }
    same = ["--target-modules", "q_proj", "--target_modules", "v_proj"], ["--target-modules", "[q_proj, v_proj]"]
    for line in same:
        assert recipe(path, *line).adapter.fields["target_modules"] == ["q_proj", "v_proj"]
    assert recipe(path, "--method", "vera", "--d-initial", "0.2").adapter.fields == {"d_initial": 0.2}
    of_file = file(tmp_path, **{"adapter.method": "ia3"})
    assert recipe(of_file, "--feedforward-modules", "[]", "--target-modules", "[q]").adapter.fields == {
        "feedforward_modules": [],
        "target_modules": ["q"],
    }


@pytest.mark.parametrize("method", ["full", *methods()])
def test_the_names_of_a_methods_fields_are_no_flags_already(method: str) -> None:
    """Or such a field could not be given by its name."""
    from inlay.recipe.sections import Adapter

    taken = {name for flag in flags() for name in (flag.name, flag.key)}
    taken |= {"set", "fresh", "help", "debug", "rows", "measure", "json"}  # of `train` and `check` themselves
    assert not taken & {name.replace("_", "-") for name in Adapter(method=method).names}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--learning-rate", "1"], "There is no option --learning-rate, and the method 'lora' has no such field. "),
        (["--learning_rate", "1"], "Did you mean '--lr'?"),
        (["--lerning-rate", "1"], "Did you mean '--lr'?"),
        (["--frehs"], "Did you mean '--fresh'?"),
        (["--nmae", "m"], "Did you mean '--model'?"),
        (["--trackers", "wandb"], "Did you mean '--report-to'?"),
        (["--prompts", "x"], "Did you mean '--watch'?"),
        (["--train.learning-rate", "1"], "Did you mean '--lr'?"),
        (["--output_dir", "x"], "Did you mean '--out'?"),
        (["--epoch", "3"], "Did you mean '--epochs'?"),
        (["--lora-alhpa", "3"], "Did you mean '--lora-alpha'"),
        (["--method", "full", "--r", "8"], "There is no option --r."),
        (["--method", "ia3", "--r", "8"], "There is no option --r, and the method 'ia3' has no such field."),
        (["--method", "lroa", "--r", "8"], "adapter.method='lroa' is not a method"),
        (["--qqqqqqqqqqqqqq", "8"], "has no such field. --help lists them."),
        (["--adapter.alpha", "3"], "adapter.alpha is not a field of the method 'lora'. Did you mean"),
        (["--r", "0"], "adapter.r=0 is not allowed: expected"),
        (["--r", "[1"], "--r is not YAML in line 1"),
        (["--lr", "fast"], "train.lr='fast' is not allowed: expected a valid number"),
        (["--batch", "2.5"], "train.batch=2.5 is not allowed: expected a valid integer"),
        (["--scheduler", "cosin"], "train.scheduler='cosin' is not allowed: expected 'cosine', 'linear'"),
        (["--packing=maybe"], "data.packing='maybe' is not allowed: expected a valid boolean"),
        (["--columns", "input"], "--columns 'input' is not allowed: expected NAME=VALUE"),
        (["--set", "lr"], "--set 'lr' is not allowed: expected NAME=VALUE"),
    ],
)
def test_wrong_lines_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(file(tmp_path)), *line])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and message in err and err.startswith("inlay: ") and err.count("\n") == 1, err


def test_a_fault_says_that_flags_may_be_it(tmp_path: Path, recipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"^recipe\.yaml with flags: train\.lr=-1 is not allowed"):
        recipe(file(tmp_path), "--lr", "-1")
    with pytest.raises(ConfigError, match=r"^the command line: train\.lr=-1 is not allowed"):
        recipe("--model", "m", "--data", "d", "--lr", "-1")


@pytest.mark.parametrize(("line", "said"), [(["--lr"], "requires an argument"), (["--lr", "--batch", "2"], "--lr")])
def test_a_flag_without_its_value(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--model", "m", *line])
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_without_a_recipe(recipe: Any) -> None:
    found = recipe("--model", "m", "--data", "some/rows.jsonl", "--method", "IA3")
    assert (found.out, found.adapter.method) == ("runs/rows-ia3", "ia3")
    assert recipe("--data.train", "d", "--model.name", "m", "--out", "x").out == "x"


def test_help_shows_all_of_it_in_100_columns_without_torch() -> None:
    code = (
        "import sys\nfrom inlay.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "100"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert all(f" --{flag.name} " in out for flag in flags())
    assert all(f"─ {section}: " in out for section in Recipe.model_fields if section != "out")
    assert max(map(len, out.splitlines())) <= 100 and "…" not in out
