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

# module -> its global that says, once and for all, whether it found peft when it was imported
_DECIDED = {"diffusers.utils.import_utils": "_peft_available"}


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
    late = _without_peft() if path() not in sys.path else []
    if late:
        raise StateError(
            f"{', '.join(late)} {'was' if len(late) == 1 else 'were'} imported without peft, and would go on without: "
            "restart (in a notebook: the kernel), and call inlay.peft.install() before importing them, or run the "
            "script with python -m inlay.peft."
        )
    folder = path()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    inherited = os.environ.get("PYTHONPATH", "")
    if folder not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, inherited]))
    importlib.invalidate_caches()
    _ask_again()


def _without_peft() -> list[str]:
    """Imported modules that have decided that there is no peft."""
    late = [name for name, flag in _DECIDED.items() if vars(sys.modules.get(name, sys)).get(flag, True) is False]
    # trl's trainers import peft's names, where there is peft, when they are imported themselves
    trainers = [n for n in sys.modules if n.startswith("trl.trainer.") and n.endswith("_trainer")]
    return late + sorted(n for n in trainers if "is_peft_available" in vars(sys.modules[n]) and not _has_peft(n))


def _has_peft(name: str) -> bool:
    return any(key in vars(sys.modules[name]) for key in ("PeftModel", "PeftConfig", "peft"))


def _ask_again() -> None:
    """Has transformers look for peft again: it remembers the answer."""
    found = vars(sys.modules.get("transformers.utils.import_utils", sys)).get("is_peft_available")
    clear = getattr(found, "cache_clear", None)
    if clear is not None:
        clear()


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext inlay.peft`."""
    install()
