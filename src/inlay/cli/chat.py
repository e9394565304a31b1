"""`inlay chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from inlay.cli.asking import Device, Seed, Source, Temperature, TopP, device_of, listed
from inlay.errors import DataError

if TYPE_CHECKING:
    from inlay.runs.talk import Talk


def command(
    source: Source,
    vs: Annotated[
        str | None, typer.Option("--vs", metavar="NAMES", help="Ask these, too: 'base', other runs; by commas.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the longest answer, in tokens.")] = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Talk to a run, an adapter or a model, a line at a time.

    /reset forgets what was said, /quit or Ctrl-D ends, Ctrl-C stops an answer. Questions are read from a pipe, too.

    Example: inlay chat runs/mine --vs base
    """
    from inlay.comparison import Decoding
    from inlay.runs.said import to_stderr
    from inlay.runs.talk import talks

    decoding = Decoding(max_new_tokens, temperature, top_p, seed)
    with talks(source, listed(vs), decoding=decoding, device=device_of(device)) as models:
        if sys.stdin.isatty():
            to_stderr("/reset forgets what was said, /quit ends, Ctrl-C stops an answer.")
        for model in models:
            if not model.remembers:
                to_stderr(f"'{model.name}' was not trained on conversations: each question stands alone.")
        for line in _lines():
            if line == "/quit":
                break
            if line == "/reset":
                for model in models:
                    model.reset()
                to_stderr("Forgotten.")
            elif line.startswith("/"):
                to_stderr(f"{line.split()[0]} is not known: /reset forgets what was said, /quit ends.")
            elif line:
                for model in models:
                    _answer(model, line, name=len(models) > 1)


def _lines() -> Iterator[str]:
    """What is asked: lines of a terminal, or of a pipe."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with suppress(ImportError):  # with it the arrow keys find earlier lines
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _answer(model: Talk, question: str, name: bool) -> None:
    from inlay.runs.said import to_stderr

    if name:
        typer.secho(f"[{model.name}]", bold=True)
    try:
        model.ask(question, _to_stdout(), to_stderr)
    except DataError as error:
        to_stderr(f"{error}")
    print(flush=True)


def _to_stdout() -> Callable[[str], None]:
    from inlay.comparison.text import safe

    return lambda piece: print(safe(piece), end="", flush=True)
