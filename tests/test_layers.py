"""Who may import whom (design, section 3), what `import inlay` costs, and that everything is documented."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted((SRC / "inlay").rglob("*.py"))

# part of the package -> how high it stands; a part imports from lower ones and from itself
LEVELS = [
    {"errors", "checks", "types", "readable"},
    {"config"},
    {"registry"},
    {"core"},
    {"quant", "kernels"},
    {"methods", "prompt"},
    {
        "inject",
        "tuner",
        "status",
        "merge",
        "io",
        "model",
        "calling",
        "view",
        "layer",
        "per_adapter",
        "optim",
        "tasks",
        "hotswap",
    },
    {"hf"},
    {"comparison", "evaluation", "exporting", "inspection"},
    {"conversion", "recipe"},
    {"runs"},
    {"train"},
    {"preflight", "diagnosis"},
    {"cli"},
    {"__init__", "__main__", "peft"},
]
HEIGHT = {part: i for i, level in enumerate(LEVELS) for part in level}
APART = [{"methods", "prompt"}, {"quant", "kernels"}, {"data", "core"}]  # neighbours that do not import each other
# parts that stand beside the levels, and what they may import; what stands above hf may import them
BESIDE = {"data": {"errors"}, "selfinstruct": {"errors", "data"}, "gorilla": {"errors", "data"}}

# a lower part may name a higher one inside a function: it is found when it is called, not when it is imported
LATE = {
    *(("config", "io"), ("config", "methods"), ("types", "config"), ("prompt", "io")),
    *(("registry", "methods"), ("registry", "hf"), ("registry", "core")),
}

FOREIGN = {
    "transformers": ["hf/", "recipe/", "runs/", "train/", "preflight/"],
    "accelerate": ["hf/", "train/"],
    "diffusers": ["hf/"],
    "huggingface_hub": ["io/hub.py", "io/card.py"],
    "peft": [],
    "safetensors": ["io/tensors.py"],
}


def name_of(file: Path) -> str:
    return str(file.relative_to(SRC / "inlay"))


def part_of(module: str) -> str:
    """`inlay.core.plan` -> `core`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether only inside a function or for type checkers) of every import in a file, `importlib`'s too."""
    tree = ast.parse(file.read_text())
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or checking:
            late.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            for alias in node.names:  # `from inlay import registry` imports a module
                inner = f"{module}.{alias.name}"
                is_module = module == "inlay" and (SRC / "inlay" / f"{alias.name}.py").exists()
                yield (inner if is_module or (SRC / inner.replace(".", "/")).is_dir() else module), node in late
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((str(a.value), node in late) for a in node.args[:1] if isinstance(a, ast.Constant))


def test_every_part_has_its_place() -> None:
    parts = {part_of("inlay." + name_of(f).removesuffix(".py").replace("/", ".")) for f in FILES}
    assert parts <= HEIGHT.keys() | BESIDE.keys(), "give a new part a level in LEVELS"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down(file: Path) -> None:
    part = part_of("inlay." + name_of(file).removesuffix(".py").replace("/", "."))
    for module, late in imports(file):
        if module.split(".")[0] != "inlay":
            continue
        other = part_of(module)
        if part in BESIDE:
            assert other in {part} | BESIDE[part], f"{name_of(file)} imports {module}"
            continue
        if late and (part, other) in LATE:
            continue
        if other in BESIDE and HEIGHT[part] > HEIGHT["hf"]:
            continue
        if part == "__init__" and late:
            continue
        assert HEIGHT[other] <= HEIGHT[part], f"{name_of(file)} imports {module}, which stands above it"
        assert not any({part, other} == pair for pair in APART), f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_foreign_packages_are_imported_where_they_may_be(file: Path) -> None:
    for module, _ in imports(file):
        allowed = FOREIGN.get(module.split(".")[0])
        assert allowed is None or any(name_of(file).startswith(a) for a in allowed), f"{name_of(file)} imports {module}"


def test_configs_errors_and_registry_need_no_torch() -> None:
    for part in ("errors", "checks", "config", "registry"):
        assert "torch" not in {m.split(".")[0] for m, late in imports(SRC / "inlay" / f"{part}.py") if not late}


def test_the_import_finder_finds_them(tmp_path: Path) -> None:
    """The tests above can fail."""
    file = tmp_path / "x.py"
    file.write_text(
        "import a.b\nfrom inlay import model\nfrom inlay.core import plan\nif TYPE_CHECKING:\n    import c\n"
        "def f():\n    import d\n    importlib.import_module('e.f')\n"
    )
    found = dict(imports(file))
    assert found == {"a.b": False, "inlay.model": False, "inlay.core": False, "c": True, "d": True, "e.f": True}


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": "/tmp"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_importing_inlay_imports_nothing_large() -> None:
    heavy = ["torch", "transformers", "accelerate", "numpy", "huggingface_hub", "safetensors", "peft"]
    out = run(f"import sys, inlay; dir(inlay); print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


def test_configs_can_be_used_without_transformers() -> None:
    out = run(
        "import sys; from inlay import LoraConfig, get_peft_model; LoraConfig(r=4);"
        "print([m for m in ('transformers', 'accelerate', 'huggingface_hub') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_every_public_name_resolves_and_no_other_does() -> None:
    import inlay

    for name in inlay.__all__:
        value = getattr(inlay, name)
        assert value.__name__ == name and value.__module__.startswith("inlay."), name
    assert inlay.__all__ == sorted(set(inlay.__all__)) and set(inlay.__all__) <= set(dir(inlay))
    with pytest.raises(AttributeError, match="module 'inlay' has no attribute 'LoraConfg'"):
        _ = inlay.LoraConfg
    namespace: dict[str, object] = {}
    exec("from inlay import *", namespace)
    assert set(inlay.__all__) <= namespace.keys()


def test_what_type_checkers_see_is_public() -> None:
    tree = ast.parse((SRC / "inlay" / "__init__.py").read_text())
    seen = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module != "typing" for a in n.names}
    import inlay

    assert seen - {"annotations", "METHODS"} <= set(inlay.__all__)


def test_every_public_module_class_and_function_is_documented() -> None:
    missing = []
    for file in FILES:
        tree = ast.parse(file.read_text())
        public = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
        missing += [name_of(file)] * (ast.get_docstring(tree) is None)
        missing += [f"{name_of(file)}: {n.name}" for n in public if ast.get_docstring(n) is None]
    assert missing == []


def test_every_public_method_of_what_users_hold_is_documented() -> None:
    import inlay

    for cls in (inlay.PeftModel, inlay.PeftConfig, inlay.LoraConfig, inlay.AutoPeftModel):
        public = {n for c in cls.__mro__ if c.__module__.startswith("inlay") for n in vars(c) if not n.startswith("_")}
        methods = [n for n in public if callable(getattr(cls, n)) or isinstance(getattr(cls, n), property)]
        methods = [n for n in methods if n not in ("peft_type",)]
        assert len(methods) > 0 and [n for n in methods if not inspect.getdoc(getattr(cls, n))] == []


def test_files_are_short() -> None:
    """One concept, one file: 300 lines, over 400 never."""
    lengths = {name_of(f): len(f.read_text().splitlines()) for f in FILES}
    assert {n: c for n, c in lengths.items() if c > 400} == {}
