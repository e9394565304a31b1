"""The command line: `inlay COMMAND ...`.

A command is a function in a file of its own here, and one line in `COMMANDS`. The line's module is imported when the
command is run or its help is shown, and imports torch and transformers inside functions only, so help is fast.

An error of Inlay ends as its message on stderr: exit code 2 for a wrong setting (`ConfigError`), 1 for all others.
`--debug`, anywhere on the line, shows where it was raised.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from inlay.errors import ConfigError, InlayError, InlayWarning, MissingExtraError, did_you_mean

# command -> "module:function" (or a typer.Typer, for a command with commands); shown in this order
COMMANDS = {
    "check": "inlay.cli.check:command",
    "train": "inlay.cli.train:command",
    "runs": "inlay.cli.runs:command",
    "compare": "inlay.cli.compare:command",
    "chat": "inlay.cli.chat:command",
    "eval": "inlay.cli.eval:command",
    "export": "inlay.cli.export:command",
    "inspect": "inlay.cli.inspect:command",
    "convert": "inlay.cli.convert:command",
    "generate-instructions": "inlay.cli.generate:command",
    "gorilla": "inlay.cli.gorilla:command",
    "schema": "inlay.cli.schema:command",
    "doctor": "inlay.cli.doctor:command",
}


def _app() -> Any:
    """The typer app, made when the command line is used: typer is an extra."""
    try:
        import typer
        from typer.core import TyperGroup
        from typer.main import get_command
    except ImportError as error:
        raise MissingExtraError(
            f"The command line needs typer ({error}). Install it with: pip install 'inlay[cli]'"
        ) from error

    class Commands(TyperGroup):
        """Commands of the table, each imported when it is asked for."""

        def list_commands(self, ctx: Any) -> list[str]:
            return list(COMMANDS)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if args and not args[0].startswith("-") and args[0] not in COMMANDS:
                ctx.fail(f"There is no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}")
            return super().resolve_command(ctx, args)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in COMMANDS:
                return None
            module, _, name = COMMANDS[cmd_name].partition(":")
            found = getattr(importlib.import_module(module), name)
            if not isinstance(found, typer.Typer):
                function, found = found, typer.Typer(add_completion=False, rich_markup_mode="rich")
                found.command(cmd_name)(function)
            command = get_command(found)
            command.name = cmd_name
            return command

    app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

    @app.callback()
    def inlay(
        debug: bool = typer.Option(False, "--debug", help="Show where an error was raised."),
        version: bool = typer.Option(False, "--version", is_eager=True, help="Show the version."),
    ) -> None:
        """Adapt language models to your texts."""

    return app


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'inlay.cli' has no attribute {name!r}")
    globals()["app"] = made = _app()
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line (by default this process's) and exits with its code."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = [a for a in given if a != "--debug"]
    if args[:1] == ["--version"]:
        print(f"inlay {sys.modules['inlay'].__version__}")
        raise SystemExit(0)
    try:
        with _plain_warnings(), _quiet() if args == given else contextlib.nullcontext():
            __getattr__("app")(args, prog_name="inlay")
    except InlayError as error:
        if args != given:
            raise
        wrong, process = isinstance(error, ConfigError), os.environ.get("RANK", "0")
        if process == "0" or not wrong:  # a wrong setting is wrong in all processes, and said by one
            print(f"inlay: {error}" if process == "0" else f"inlay (process {process}): {error}", file=sys.stderr)
        raise SystemExit(2 if wrong else 1) from None


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of Inlay are a line on stderr, without the code that they come from."""
    usual = warnings.formatwarning

    def line(message: Warning | str, category: type[Warning], *where: Any) -> str:
        return f"WARNING: {message}\n" if issubclass(category, InlayWarning) else usual(message, category, *where)

    warnings.formatwarning = line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = usual


# packages that say, where they are imported, which of their parts this machine does without
_TALKERS = ("bitsandbytes", "torch.utils._pytree", "torchao", "transformers")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Other packages' remarks are kept off the screen, and their bars where there is none; errors are not."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKERS}
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
