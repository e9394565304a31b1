"""`python -m inlay.peft script.py [args]`, `python -m inlay.peft -m module [args]`, `python -m inlay.peft --path`."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import runpy
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

from inlay.errors import StateError
from inlay.peft import install, path

_SAFE = getattr(sys.flags, "safe_path", False)  # `python -P`: no folder is put on the path

USAGE = """usage: python -m inlay.peft [-h] (--path | -m MODULE | SCRIPT) [ARGS ...]

Runs a Python script or module in which `import peft` means Inlay. A peft that is installed stays as it is.

  SCRIPT      a file, or a folder or zip with a __main__.py, with the arguments after it
  -m MODULE   a module, as `python -m` would run it
  --path      prints the folder that does it when it is on PYTHONPATH
"""


def main(arguments: list[str]) -> int:
    """Runs what the command line says; returns the exit code of the command itself. The script's own passes through."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments == ["--path"]:
        print(path())
        return 0
    as_module = arguments[0] == "-m"
    command = arguments[as_module:]
    if not command or command[0].startswith("-"):
        print(USAGE, end="", file=sys.stderr)
        return 2
    if not as_module and not os.path.exists(command[0]):
        print(f"python -m inlay.peft: there is no file {command[0]!r}", file=sys.stderr)
        return 2
    try:
        install()
    except StateError as error:
        print(f"python -m inlay.peft: {error}", file=sys.stderr)
        return 1
    sys.argv = command
    if as_module:
        if not _is_module(command[0]):
            print(f"python -m inlay.peft: there is no module {command[0]!r}", file=sys.stderr)
            return 1
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        return 0
    # the path of `python script.py`: nothing, or the script's folder, where `python -m` has the current one
    own = 1 + sys.path.index(path())
    if not _SAFE and sys.path[own : own + 1] in ([os.getcwd()], [""]):
        del sys.path[own]
    if os.path.isdir(command[0]) or not command[0].endswith((".py", ".pyw")):
        runpy.run_path(command[0], run_name="__main__")
        return 0
    if not _SAFE:
        sys.path.insert(own, str(Path(command[0]).resolve().parent))
    _run(os.path.abspath(command[0]))
    return 0


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return False


def _run(file: str) -> None:
    """Runs a script as `__main__`, for good: threads and children that it starts look for themselves there."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=file, __builtins__=builtins, __loader__=SourceFileLoader("__main__", file))
    with io.open_code(file) as source:
        code = compile(source.read(), file, "exec")
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
