"""What can be done with a run: command lines."""

from __future__ import annotations

import shlex

from inlay.runs.run import Run


def commands(run: Run) -> list[str]:
    """For a finished run those that use it, for another the one that goes on."""
    folder = shlex.quote(str(run.folder))
    if not run.finished:
        return [f"inlay {run.command}"]
    return [
        f"inlay compare {folder} --prompts prompts.txt",
        f"inlay chat {folder} --vs base",
        f"inlay export {folder} --to merged --verify",
    ]
