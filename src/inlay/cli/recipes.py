"""Commands that take a recipe, from a file, from flags, or from both.

    @recipe_command
    def command(recipe: Recipe, fresh: Annotated[bool, typer.Option("--fresh")] = False) -> None: ...

The command line is then `inlay NAME [RECIPE] [--fresh] [--lr 1e-4] [--set KEY=VALUE] ...`, and the function is given
the recipe that this says: flags win over the file, `--set` over both. The whole key is a flag, too (`--train.lr`), and
`_` is as good as `-`. Fields of the adapter's config depend on the method: any other `--name value` is taken as one,
and checked when the method is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from inlay.cli.flags import flags, pair, parameter
from inlay.errors import ConfigError, nearest
from inlay.io.plain import parse_yaml, read_yaml
from inlay.recipe.recipe import ELSEWHERE, Recipe, flat
from inlay.recipe.sections import FULL, Adapter

_NOTE = (
    "Flags win over the recipe's file; --no-packing turns off what it turns on, and null takes a value back. "
    "The fields of the method's config are flags, too: --r 8 --lora-alpha 16 for lora."
)
_FIELDS = "inlay.fields"  # where the context has the options that are no flags
_VALUE, _FLAG = "a value", "no value"  # what stands behind an option


def recipe_command(function: Callable[..., Any]) -> typer.Typer:
    """A command whose function takes a recipe, and options of its own."""
    own = inspect.signature(function, eval_str=True).parameters
    known = {flag.variable: flag for flag in flags()}

    def command(context: typer.Context, recipe: Path | None, set_: list[str] | None, **given: Any) -> Any:
        values = {f.key: f.value(given[n]) for n, f in known.items() if given[n] is not None}
        options = [name for p in context.command.params for name in p.opts]
        chosen = recipe_of(recipe, values, context.meta[_FIELDS], set_ or (), context.info_name or "train", options)
        return function(chosen, **{name: given[name] for name in own if name != "recipe"})

    file = Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe (YAML); else give --model and --data.")
    ]
    assigned = typer.Option("--set", metavar="KEY=VALUE", help="Any key, once more: --set train.lr=1e-4.")
    parameters = [
        parameter("context", typer.Context, inspect.Parameter.empty),
        parameter("recipe", file),
        *(parameter(name, p.annotation, p.default) for name, p in own.items() if name != "recipe"),
        parameter("set_", Annotated[list[str] | None, assigned]),
        *(flag.parameter() for flag in sorted(known.values(), key=lambda f: "." in f.key)),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__doc__ = function.__doc__
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(cls=_Command, epilog=_NOTE)(command)
    return app


def recipe_of(
    file: Path | None,
    values: Mapping[str, object],
    fields: Iterable[tuple[str, Any]] = (),
    assigned: Iterable[str] = (),
    command: str = "train",
    options: Iterable[str] = (),
) -> Recipe:
    """The recipe of a file, flags (key -> value), other options (name -> value) and `--set`. Raises ConfigError.

    `options` are those of the command, to name the nearest where one is none.
    """
    changes = {**values, **assignments(assigned)}
    known = {} if file is None else dict(flat(read_yaml(file)))
    method = str({**known, **changes}.get("adapter.method", "lora")).lower()
    changes = {**adapter_fields(fields, method, options), **changes}
    if file is not None:
        return Recipe.make({**known, **changes}, f"{file.name}{' with flags' if changes else ''}")
    if missing := [name for name, key in (("--model", "model.name"), ("--data", "data.train")) if key not in changes]:
        raise ConfigError(f"Give a recipe, or {' and '.join(missing)}: inlay {command} --model M --data rows.jsonl")
    changes.setdefault("out", f"runs/{Path(str(changes['data.train'])).stem}-{method}")
    return Recipe.make(changes, "the command line")


def adapter_fields(given: Iterable[tuple[str, Any]], method: str, options: Iterable[str] = ()) -> dict[str, Any]:
    """Options that are no flags as fields of the method's config. Raises ConfigError for one that is neither."""
    found: dict[str, Any] = {}
    names: list[str] | None = None
    for option, text in given:
        name = option.removeprefix("--").replace("-", "_")
        value = text if text is True else parse_yaml(text, option)
        if not name.startswith("adapter."):
            names = Adapter(method=method).names if names is None else names
            if name not in names:
                raise _no_option(option, method, [*options, *(f"--{n}" for n in names)])
        key = f"adapter.{name.removeprefix('adapter.')}"
        before = found.get(key)
        found[key] = value if key not in found else [*(before if isinstance(before, list) else [before]), value]
    return found


def assignments(given: Iterable[str], option: str = "--set") -> dict[str, object]:
    """`["train.lr=1e-4"]` as `{"train.lr": 0.0001}`; values are YAML. Raises ConfigError."""
    pairs = (pair(text, option) for text in given)
    return {key: parse_yaml(value, f"{option} {key}") for key, value in pairs}


class _Command(TyperCommand):
    """Understands whole keys, `_` for `-`, `--no-` before switches; and sets what it does not know aside, as fields."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelled = self._spelled(ctx)
        left, aside, rest = [], [], list(args)
        while rest:
            token = rest.pop(0)
            if token == "--":
                left += [token, *rest]
                break
            if not token.startswith("--"):
                left.append(token)
                continue
            given, equals, value = token.partition("=")
            option, implied = spelled.get(_plain(given), (given, _VALUE))
            if not equals and rest and _is_value(rest[0], implied):
                equals, value = "=", rest.pop(0)
            if _plain(given) not in spelled:
                aside.append((given, value if equals else True))
            elif implied == _VALUE and not equals:
                ctx.fail(f"Option '{given}' requires an argument.")
            elif implied in (_VALUE, _FLAG):
                left.append(f"{option}{equals}{value}")
            else:
                left.append(f"{option}={value or implied}")
        ctx.meta[_FIELDS] = aside
        return super().parse_args(ctx, left)

    def _spelled(self, ctx: Any) -> dict[str, tuple[str, str]]:
        """What may be written -> the option that it is, and its value where none is given, or `_VALUE` or `_FLAG`."""
        options = [p for p in self.get_params(ctx) if isinstance(p, TyperOption)]
        spelled = {_plain(name): (name, _FLAG if p.is_flag else _VALUE) for p in options for name in p.opts}
        for flag in flags():
            for name in (flag.name, flag.key):
                spelled[_plain(f"--{name}")] = f"--{flag.name}", "true" if flag.switch else _VALUE
                if flag.switch:
                    spelled[_plain(f"--no-{name}")] = f"--{flag.name}", "false"
        return spelled


def _is_value(text: str, implied: str) -> bool:
    """Whether what stands behind an option is its value."""
    return not text.startswith("--") if implied == _VALUE else implied != _FLAG and text.lower() in ("true", "false")


def _no_option(option: str, method: str, options: Iterable[str]) -> ConfigError:
    """What is said to an option that there is not: the nearest one, also by its key or what other tools call it."""
    by_key = {flag.key: flag.name for flag in flags()}
    known = {name: by_key[key] for name, key in ELSEWHERE.items()}
    known |= {key.rpartition(".")[2]: name for key, name in by_key.items()} | by_key
    known |= {name.removeprefix("--"): name.removeprefix("--") for name in options}
    known = {_plain(name): _plain(found) for name, found in known.items()}
    near = nearest(_plain(option.removeprefix("--")), known, 1)
    hint = f" Did you mean '--{known[near[0]]}'?" if near else " --help lists them."
    also = "" if method == FULL else f", and the method {method!r} has no such field"
    return ConfigError(f"There is no option {option}{also}.{hint}", option)


def _plain(option: str) -> str:
    return option.replace("_", "-")
