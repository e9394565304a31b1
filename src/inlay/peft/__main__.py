"""`python -m inlay.peft script.py [args]`, `python -m inlay.peft -m module [args]`, `python -m inlay.peft --path`."""

from __future__ import annotations

import os
import runpy
import sys

from inlay.peft import install, path

USAGE = """usage: python -m inlay.peft [-h] (--path | -m MODULE | SCRIPT) [ARGS ...]

Runs a Python script or module in which `import peft` means Inlay.

  SCRIPT      a file, with the arguments after it
  -m MODULE   a module, as `python -m` would run it
  --path      prints the folder that does it when it is on PYTHONPATH
"""


def main(arguments: list[str]) -> int:
    """Runs what the command line says; returns the exit code of the command itself."""
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
    install()
    sys.argv = command
    if as_module:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        return 0
    # as `python script.py` has it, but for the folder that is `peft`
    sys.path.insert(1, os.path.dirname(os.path.abspath(command[0])))
    runpy.run_path(command[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
