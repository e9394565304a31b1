"""The recipe's keys as a JSON schema (draft 2020-12), for editors, and as a text.

    # yaml-language-server: $schema=recipe.schema.json        the first line of a recipe

The sections are as pydantic describes them. The fields of `adapter` are those of the method's config class, with their
types, the defaults that a recipe gives them, and what the class's docstring says of them. A schema knows types and
names only: values that do not go together are found by `Recipe`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from inlay.config import PeftConfig, config_class
from inlay.errors import ConfigError, did_you_mean, optional
from inlay.recipe.recipe import Recipe
from inlay.recipe.sections import FULL, Adapter, Section, methods

optional("pydantic", "cli")
from pydantic import TypeAdapter  # noqa: E402

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_USUAL = "lora"  # the method of a recipe that names none
_WORDS = {"null": "null", "string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}


def recipe_schema(method: str | None = None) -> dict[str, Any]:
    """The schema of a recipe, for every method or for one. Raises ConfigError for a method that there is not."""
    schema: dict[str, Any] = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs")
    names = _methods(method)
    of = {name: _method_schema(name, definitions) for name in names}
    definitions |= {f"method_{name}": own for name, own in of.items()}
    definitions["Adapter"] = _adapter_schema(names, only=method is not None)
    properties = schema.pop("properties")
    if method is not None and method != _USUAL:  # the adapter has to be there, to say so
        schema["required"] = [*schema["required"], "adapter"]
    sections = {name: definitions[own.__name__] for name in properties if (own := _section(name)) is not None}
    return {
        "$schema": DIALECT,
        "title": "Recipe of Inlay",
        "description": "What `inlay train` does, key by key.",
        "type": "object",
        "additionalProperties": False,
        "allOf": [_given(name, sections.get(name)) for name in schema["required"]],
        "properties": {name: _without_title(own) for name, own in properties.items()},
        "patternProperties": {_dotted(name, own.get("properties", {})): True for name, own in sections.items()},
        "$defs": {name: _without_title(own) for name, own in definitions.items()},
    }


def recipe_text(method: str | None = None, width: int = 100) -> str:
    """Every key with its type, default and description; of the adapter's fields those of one method, or of LoRA."""
    chosen = method or _USUAL
    _methods(chosen)
    outer = Recipe.model_json_schema()["properties"]
    lines: list[str] = []
    for name, field in Recipe.model_fields.items():
        section = _section(name)
        if section is None:
            lines += ["", *_entry(name, outer[name], field, width)]
            continue
        lines += ["", f"{name}: {inspect.getdoc(section)}"]
        inner = section.model_json_schema()["properties"]
        for key, own in section.model_fields.items():
            lines += _entry(f"{name}.{key}", inner[key], own, width)
        if name == "adapter":
            lines += _method_text(chosen, width)
    return "\n".join(lines).strip()


# ---------------------------------------------------------------------- the adapter's fields


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a method's config in a recipe: its schema, its default, and what it is."""

    schema: dict[str, Any]
    default: Any
    description: str

    def is_required(self) -> bool:
        """Whether it has to be given: never."""
        return False

    def get_default(self, call_default_factory: bool = True) -> Any:
        """The default."""
        return self.default


def fields_of(method: str) -> dict[str, Field]:
    """The fields of `adapter` for a method, by name."""
    if method == FULL:
        return {}
    cls, adapter = config_class(method), Adapter(method=method)
    hints, said = typing.get_type_hints(cls), descriptions(cls)
    found = {}
    for f in dataclasses.fields(cls):
        if f.name not in adapter.names:
            continue
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        schema = TypeAdapter(hints[f.name]).json_schema()
        found[f.name] = Field(schema, adapter.fields.get(f.name, default), said.get(f.name, ""))
    return found


def descriptions(cls: type[PeftConfig]) -> dict[str, str]:
    """Field -> what the docstring of its class, or of one that this derives from, says of it under `Args:`."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        doc = inspect.cleandoc(owner.__dict__.get("__doc__") or "")
        section = re.search(r"^Args:\n((?:(?: {4}.*)?\n?)*)", doc, re.MULTILINE)
        entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section.group(1) if section else "", re.MULTILINE)
        for names, text in entries:
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _method_schema(method: str, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {"method": {"const": method}}
    for name, field in fields_of(method).items():
        own = dict(field.schema)
        for title, inner in own.pop("$defs", {}).items():
            definitions[title] = inner
        default = _plain(field.default)
        properties[name] = _without_title(own) | ({"description": field.description} if field.description else {})
        properties[name] |= {"default": default}
    about = {"description": _about(method)}
    return {"type": "object", **about, "properties": properties, "additionalProperties": False}


def _adapter_schema(names: list[str], only: bool) -> dict[str, Any]:
    about = {"description": "How the base is adapted: the name of a method, or full for every weight."}
    if only:
        required = {} if names == [_USUAL] else {"required": ["method"]}
        return {"$ref": f"#/$defs/method_{names[0]}", "description": inspect.getdoc(Adapter), **required}
    chosen = [
        {
            "if": {"properties": {"method": {"const": name}}, **({} if name == _USUAL else {"required": ["method"]})},
            "then": {"$ref": f"#/$defs/method_{name}"},
        }
        for name in names
    ]
    return {
        "type": "object",
        "description": inspect.getdoc(Adapter),
        "properties": {"method": {"enum": names, "default": _USUAL, **about}},
        "allOf": chosen,
    }


def _methods(method: str | None) -> list[str]:
    known = [*methods(), FULL]
    if method is None:
        return known
    if method not in known:
        raise ConfigError.of("method", method, f"one of {', '.join(known)}", did_you_mean(method, known).strip())
    return [method]


def _section(name: str) -> type[Section] | None:
    found = Recipe.model_fields[name].annotation
    return found if isinstance(found, type) and issubclass(found, Section) else None


def _dotted(section: str, names: Mapping[str, Any]) -> str:
    """The keys of a section, written at the top: `train.lr`. Which fields an adapter has depends on its method."""
    return rf"^{section}\.({'.+' if section == 'adapter' else '|'.join(names)})$"


def _given(name: str, section: Mapping[str, Any] | None) -> dict[str, Any]:
    """That a key is given; of a section, that its own are, dotted or not."""
    own = (section or {}).get("required", [])
    if not own:
        return {"required": [name]}
    return {"anyOf": [{"required": [name]}, {"required": [f"{name}.{key}" for key in own]}]}


def _without_title(schema: Any) -> Any:
    """Without the titles that pydantic makes of names."""
    if isinstance(schema, dict):
        kept = {k: v for k, v in schema.items() if k != "title" or isinstance(v, dict)}
        return {k: _without_title(v) for k, v in kept.items()}
    return [_without_title(v) for v in schema] if isinstance(schema, list) else schema


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return getattr(value, "value", value)


# ---------------------------------------------------------------------- text


def _method_text(method: str, width: int) -> list[str]:
    known = f"Methods: {', '.join([*methods(), FULL])}. `inlay schema --text --method ia3` has the fields of another."
    lines = ["", *textwrap.wrap(known, width, initial_indent="  ", subsequent_indent="  "), ""]
    if method == FULL:
        return [*lines, "  full has no fields."]
    lines.append(f"  {method}: {_about(method)}")
    for name, field in fields_of(method).items():
        lines += _entry(f"adapter.{name}", field.schema, field, width)
    return lines


def _about(method: str) -> str:
    """What a method computes."""
    if method == FULL:
        return "Every weight is trained."
    return " ".join(str(inspect.getdoc(config_class(method))).split("\n\n")[0].split())


def _entry(key: str, schema: Mapping[str, Any], field: Any, width: int) -> list[str]:
    value = None if field.is_required() else _plain(field.get_default(call_default_factory=True))
    default = "needed" if field.is_required() else f"default {json.dumps(value)}"
    kinds = ", ".join(dict.fromkeys(_kinds(schema)))
    text = f"{kinds} ({default}){': ' if field.description else ''}{field.description or ''}"
    indent = " " * 34
    lines = textwrap.wrap(text, max(width, 60), initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return [f"  {key:<31} {lines[0].strip()}", *lines[1:]]


def _kinds(schema: Mapping[str, Any]) -> Iterator[str]:
    """A schema's types in words."""
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from _kinds(part)
    elif "enum" in schema:
        yield f"one of {', '.join(map(str, schema['enum']))}"
    elif schema.get("type") == "array":
        yield f"list of {' or '.join(_kinds(schema['items']))}"
    elif schema.get("type") == "object" and isinstance(inner := schema.get("additionalProperties"), dict):
        yield f"names with {' or '.join(_kinds(inner))}"
    elif schema.get("type") == "object" or "$ref" in schema:
        yield "names with values"
    else:
        yield _WORDS[schema["type"]]
