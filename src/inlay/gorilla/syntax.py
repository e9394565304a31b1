"""Calls in Python text that may be broken, through tree-sitter.

Responses quote code inside of quotes, escape it twice or cut it off: of the published ones that have a call, Python's
own `ast` cannot read any of TorchHub's 372, nor 1,221 of the other 3,017. tree-sitter recovers, and what it recovers
is what Gorilla's figures rest on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from inlay.errors import optional


@dataclass(frozen=True)
class Call:
    """A call as written: `name(arguments)`, each argument with its keyword or None; texts without outer quotes."""

    name: str
    arguments: tuple[tuple[str | None, str], ...]


@dataclass(frozen=True)
class Subtree:
    """An inner node of a syntax tree: its text, and that of its first child (of a call: the function's name)."""

    head: str
    text: str


def call(code: str) -> Call | None:
    """The call that `code` consists of; None if it is none. Raises MissingExtraError without `inlay[gorilla]`."""
    statement = _tree(code.strip()).children[:1]
    node = statement[0].children[0] if statement and statement[0].children else None
    if node is None or node.type != "call":
        return None
    arguments = [n for n in node.child_by_field_name("arguments").named_children if n.type != "comment"]
    return Call(_text(node.children[0]), tuple(map(_argument, arguments)))


def subtrees(code: str) -> list[Subtree]:
    """Every inner node of `code`'s tree, outer before inner and later before earlier.

    Raises MissingExtraError without `inlay[gorilla]`.
    """
    found, stack = [], [_tree(code)]
    while stack:
        node = stack.pop()
        if node.children:
            found.append(Subtree(_text(node.children[0]), _text(node)))
        stack += [child for child in node.children if child.children]
    return found


def _argument(node: Any) -> tuple[str | None, str]:
    keyword = None
    if node.type == "keyword_argument":
        keyword, node = _text(node.child_by_field_name("name")), node.child_by_field_name("value")
    return keyword, _text(node).strip("'").strip('"')


def _text(node: Any) -> str:
    return str(node.text.decode())


def _tree(code: str) -> Any:
    return _parser().parse(code.encode(errors="replace")).root_node  # JSON may hold half a surrogate pair


@lru_cache(maxsize=1)
def _parser() -> Any:
    tree_sitter, python = optional("tree_sitter", "gorilla"), optional("tree_sitter_python", "gorilla")
    return tree_sitter.Parser(tree_sitter.Language(python.language()))
