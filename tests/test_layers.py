"""Who may import whom (docs/architecture.md), and that `import inlay` costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import inlay

SRC = Path(inlay.__file__).parent

FOUNDATION = {"errors", "checks", "config", "registry"}
UPPER = {"model", "inject", "tuner", "tasks", "status", "merge", "io"}
# package or module -> what it may import of Inlay besides itself
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "checks": {"errors"},
    "config": {"errors", "checks"},
    "registry": {"errors", "config"},
    "core": FOUNDATION,
    "kernels": FOUNDATION,
    "methods": FOUNDATION | {"core", "kernels"},
    **{name: FOUNDATION | UPPER | {"core"} for name in UPPER},
    "hf": FOUNDATION | UPPER | {"core"},
}
# imports against the grain, made inside a function: module -> what
LATE = {"config": {"io"}}  # PeftConfig.from_pretrained and save_pretrained read and write files
# third-party packages that only some files may import
OUTSIDE = {"transformers": {"hf"}, "accelerate": {"hf"}, "huggingface_hub": {"io/hub", "io/card"}, "peft": set()}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SRC.rglob("*.py")):
        yield path.relative_to(SRC).with_suffix("").as_posix(), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(name, whether it is imported inside a function) of every import in a file but those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "inlay":
                yield from ((f"inlay.{alias.name}", late) for alias in node.names)
            else:
                yield str(node.module), late


def layer(module: str) -> str:
    return module.split("/")[0]


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_respect_the_layers(module: str, path: Path) -> None:
    mine = layer(module)
    assert mine in ALLOWED, f"{module}: a new package needs a place in docs/architecture.md and here"
    for name, late in imports(path):
        top, _, rest = name.partition(".")
        if top == "inlay" and rest:
            other = rest.split(".")[0]
            allowed = ALLOWED[mine] | {mine} | (LATE.get(mine, set()) if late else set())
            assert other in allowed, f"{module} imports {name}"
        elif top in OUTSIDE:
            assert {mine, module} & OUTSIDE[top], f"{module} imports {name}"
            assert top != "huggingface_hub" or late, f"{module} imports {name} when it is imported"


def test_prompt_and_methods_do_not_import_each_other() -> None:
    families = {path.relative_to(SRC).parts[1] for path in (SRC / "methods").glob("*/*.py")}
    for module, path in modules():
        parts = module.split("/")
        if parts[0] != "methods" or len(parts) < 3:
            continue
        for name, _ in imports(path):
            if name.startswith("inlay.methods."):
                assert name.split(".")[2] not in families - {parts[1]}, f"{module} imports {name}"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_inlay_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'accelerate', 'peft', 'huggingface_hub', 'safetensors'}"
    assert run(f"import inlay, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_using_lora_imports_neither_transformers_nor_accelerate() -> None:
    code = (
        "import sys, inlay; from torch import nn;"
        "inlay.get_peft_model(nn.Sequential(nn.Linear(2, 2)), inlay.LoraConfig(target_modules=['0']));"
        "print(sorted({'transformers', 'accelerate', 'peft'} & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_every_public_name_resolves() -> None:
    assert len(inlay.__all__) == len(set(inlay.__all__))
    for name in inlay.__all__:
        assert getattr(inlay, name) is not None
        assert name in dir(inlay)
    with pytest.raises(AttributeError, match="no attribute 'LoraConfg'"):
        inlay.LoraConfg  # noqa: B018


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_everything_public_says_what_it_is(module: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"


def test_files_stay_short() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules()}
    assert {m: n for m, n in lengths.items() if n > 320} == {}
