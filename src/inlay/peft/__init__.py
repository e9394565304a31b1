"""`import peft` resolves to Inlay, in one process and its children: scripts written for peft run unchanged.

    python -m inlay.peft script.py [args]         a script, or `-m inlay.peft -m module [args]`
    PYTHONPATH=$(python -m inlay.peft --path) ... any command
    import inlay.peft; inlay.peft.install()       from here on
    %load_ext inlay.peft                          in a notebook

Nothing named `peft` is installed. A folder that comes with Inlay holds a package `peft` and its metadata; it is put
first on `sys.path`, and on `PYTHONPATH` for the processes started from here, so that `importlib.metadata` answers too.
What `peft` and its modules offer is listed in `inlay.peft.names`; `peft.__provider__` is `"inlay"`.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from inlay.errors import StateError


def path() -> str:
    """The folder to put first on the path for `import peft` to mean Inlay."""
    return str(Path(__file__).parent / "site")


def install() -> None:
    """Makes `import peft` mean Inlay, in this process and those started from it. Does nothing the second time.

    Raises StateError where it comes too late: peft itself, or a library that has looked for peft and not found it, is
    imported already. Nothing has changed then.
    """
    present = sys.modules.get("peft")
    if present is not None and getattr(present, "__provider__", None) != "inlay":
        raise StateError(
            "peft itself is imported already, and what was imported from it would stay: call inlay.peft.install() "
            "before anything imports peft (in a notebook: restart the kernel first), or run the script with "
            "python -m inlay.peft."
        )
    folder = path()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    inherited = os.environ.get("PYTHONPATH", "")
    if folder not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, inherited]))
    importlib.invalidate_caches()


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext inlay.peft`."""
    install()
