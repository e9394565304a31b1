"""Every key of a recipe as a flag of the command line. `inlay.cli.recipes` has the commands that take them.

A key's flag is its last part (`--lr` for `train.lr`) or what `NAMES` says; its help is the key's description.
"""

from __future__ import annotations

import inspect
import types
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from inlay.errors import ConfigError
from inlay.io.plain import parse_yaml
from inlay.recipe.recipe import Recipe

# flags that are not the last part of their key
NAMES = {
    "model.name": "model",
    "data.train": "data",
    "watch.prompts": "watch",
    "report.trackers": "report-to",
    "report.html": "report-html",
}


@dataclass(frozen=True)
class Flag:
    """A key of the recipe on the command line.

    Attributes:
        key: `train.save_every`.
        name: `save-every`.
        kinds: what its value may be: int, float, str, bool, list, dict, NoneType, or the values that are allowed.
        help: what it is.
    """

    key: str
    name: str
    kinds: tuple[Any, ...]
    help: str

    @property
    def switch(self) -> bool:
        """Whether it is `--name` or `--no-name`, without a value."""
        return bool in self.kinds

    @property
    def many(self) -> bool:
        """Whether it may be given more than once."""
        return list in self.kinds or dict in self.kinds

    def value(self, given: Any) -> Any:
        """What was given, as the recipe's file would have it. Raises ConfigError."""
        if dict in self.kinds:
            return dict(pair(text, f"--{self.name}") for text in given)
        if self.many:
            return given
        if {int, float, bool} & set(self.kinds):
            return parse_yaml(given, f"--{self.name}")
        return None if type(None) in self.kinds and given == "null" else given

    def parameter(self) -> inspect.Parameter:
        """As typer has it."""
        kind = list[str] if self.many else str
        option = typer.Option(
            f"--{self.name}",
            help=self.help,
            metavar=self._metavar(),
            show_default=False,
            rich_help_panel=_panel(self.key) if "." in self.key else None,
        )
        return parameter(self.variable, Annotated[kind | None, option])

    @property
    def variable(self) -> str:
        """The key as a name of Python."""
        return self.key.replace(".", "__")

    def _metavar(self) -> str:
        if self.switch:
            return " "
        if dict in self.kinds:
            return "NAME=VALUE"
        if str in self.kinds or list in self.kinds:
            return "TEXT"
        if float in self.kinds:
            return "NUMBER"
        return "N" if int in self.kinds else "NAME"


def flags() -> list[Flag]:
    """Every key of the recipe. A name that two sections have goes with its section: `--watch-name`."""
    fields: dict[str, Any] = {}
    for section, outer in Recipe.model_fields.items():
        inner = getattr(outer.annotation, "model_fields", None)
        fields |= {section: outer} if inner is None else {f"{section}.{name}": field for name, field in inner.items()}
    names = {key: NAMES.get(key, key.rpartition(".")[2].replace("_", "-")) for key in fields}
    times = Counter(names.values())
    names = {key: n if times[n] == 1 else key.replace(".", "-").replace("_", "-") for key, n in names.items()}
    return [Flag(key, name, _kinds(fields[key].annotation), _help(fields[key], name)) for key, name in names.items()]


def pair(text: str, option: str) -> tuple[str, str]:
    """`NAME=VALUE` in two. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{option} {text!r} is not allowed: expected NAME=VALUE.")
    return key.strip(), value


def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """What a function that typer calls is given by name."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _panel(key: str) -> str:
    section = key.partition(".")[0]
    outer = Recipe.model_fields[section]
    said = str(inspect.getdoc(outer.annotation)).splitlines()[0].rstrip(".")
    return f"{section}: {said[0].lower()}{said[1:]}"


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """`Literal["a"] | list[str] | None` as ("a", list, NoneType)."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return (get_origin(annotation) or annotation,)


def _help(field: Any, name: str) -> str:
    kinds = _kinds(field.annotation)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    said = field.description or ""
    text = said[:1].upper() + said[1:]
    if choices := [f"{kind} (default)" if kind == default else kind for kind in kinds if isinstance(kind, str)]:
        text += f": {', '.join(choices)}"
    text += "" if text.endswith("...") else "."
    if {list, dict} & set(kinds):
        text += " May be given more than once."
    if choices or default is False or default in (None, [], {}):
        return text
    return f"{text} [dim]Default: {f'yes; --no-{name}' if default is True else default}.[/dim]"
