"""What a row means: parts of text, trained or not; and which format reads it.

A format is one object: the columns it needs and a function from a row to parts.

    register(Format("haiku", shapes=(("theme", "poem"),), parts=lambda row, chat: [
        Part(f"A haiku about {row.text('theme')}:\\n"), Part(row.text("poem"), trained=True)]))

The format of a data set is found by its columns: a format *claims* the columns it needs and those it can use besides.
The one whose claim holds all other claims is it; of two with the same claim, the one that was registered first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from inlay.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from inlay.data.chat import Chat


class Part(NamedTuple):
    """A piece of a row's text, and whether the model is trained to write it."""

    text: str
    trained: bool = False


class BadRow(DataError):
    """A row that cannot be used. The message is the reason; it names no row, so that equal reasons are counted."""


@dataclass(slots=True)
class Row:
    """The values of a row. `columns` are those of the whole data set; `notes` collects what is worth a remark."""

    values: Mapping[str, Any]
    columns: frozenset[str]
    notes: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """The value as it is. Raises BadRow if there is none."""
        if name not in self.values:
            raise BadRow(f"{name} is missing")
        value = self.values[name]
        if value is None:
            raise BadRow(f"{name} is null")
        return value

    def text(self, name: str) -> str:
        """The value, which must be a string (it may be empty)."""
        return valid_text(self.get(name), name)

    def optional(self, name: str) -> str:
        """The string, or "" where there is none."""
        if self.values.get(name) is None:
            if name in self.values:
                self.notes.append(f"{name} is null, read as empty")
            return ""
        return self.text(name)


def valid_text(value: Any, name: str) -> str:
    """`value` if it is a string that can be encoded. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {type(value).__name__}, expected text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{name} holds half of a surrogate pair, which is no character") from None
    return value


@dataclass(frozen=True)
class Format:
    """How rows of one shape are read.

    Attributes:
        name: how it is asked for.
        shapes: sets of columns, any of which will do.
        parts: (row, the tokenizer's chat template) -> the row's text. Raises BadRow.
        optional: columns it uses where they are there.
        complete: the parts hold every special token themselves, so none is added (chat templates write their own).
        last_resort: taken only if no other format fits.
        asking: a text -> what a model that was trained on this format is given for it. See `asked` for what it is by
            default.
    """

    name: str
    shapes: tuple[tuple[str, ...], ...]
    parts: Callable[[Row, Chat], list[Part]]
    optional: tuple[str, ...] = ()
    complete: bool = False
    last_resort: bool = False
    asking: Callable[[str], str] | None = None

    def asked(self, text: str, chat: Chat) -> str | list[dict[str, Any]]:
        """What a model that was trained on this format is given for a text: a text, or a conversation.

        It is what stands before the first trained part of a row whose first column is `text`; with `complete` a
        conversation of one turn. Where all is trained it is the text itself. Raises BadRow.
        """
        if self.asking is not None:
            return self.asking(text)
        if self.complete:
            return [{"role": "user", "content": text}]
        shape = self.shapes[0]
        return self.prompt(Row({**dict.fromkeys(shape, "-"), shape[0]: text}, frozenset(shape)), chat) or text

    def prompt(self, row: Row, chat: Chat) -> str:
        """What stands before the first trained part of a row. Raises BadRow."""
        return "".join(part.text for part in takewhile(lambda part: not part.trained, self.parts(row, chat)))

    def shape_in(self, columns: Iterable[str]) -> tuple[str, ...] | None:
        """The first shape whose columns are all there, or None."""
        there = set(columns)
        return next((shape for shape in self.shapes if there.issuperset(shape)), None)

    def claim(self, columns: Iterable[str]) -> frozenset[str]:
        """The columns of `columns` that it would read; empty if it cannot read them."""
        shape = self.shape_in(columns)
        return frozenset() if shape is None else frozenset(shape) | (frozenset(self.optional) & frozenset(columns))

    def described(self) -> str:
        """`alpaca: instruction, output [, input]`."""
        shapes = " | ".join(", ".join(shape) for shape in self.shapes)
        return f"{self.name}: {shapes}" + (f" [, {', '.join(self.optional)}]" if self.optional else "")


_FORMATS: dict[str, Format] = {}


def register(format: Format) -> Format:
    """Makes `format` known by its name; one that is registered again replaces the first."""
    _FORMATS[format.name] = format
    return format


def known_formats() -> dict[str, Format]:
    """Every format, by name."""
    import inlay.data.formats  # noqa: F401  (registers the ones that Inlay has)

    return dict(_FORMATS)


def choose(asked: str | Format, columns: Iterable[str]) -> Format:
    """The format that was asked for, or with "auto" the one that the columns show.

    Raises DataError, which lists the columns and the known formats, if none or more than one fits.
    """
    there = list(dict.fromkeys(columns))
    if asked == "auto":
        return _detected(there)
    if isinstance(asked, str):
        known = known_formats()
        if asked not in known:
            raise DataError(
                f"format={asked!r} is not known: expected 'auto' or one of {sorted(known)}.{did_you_mean(asked, known)}"
            )
        asked = known[asked]
    if asked.shape_in(there) is None:
        raise DataError(f"The data is not in the format {asked.described()}. {_shown(there)} {_RENAME}")
    return asked


_RENAME = "Rename columns with columns={'name in the format': 'name in the data'}, or choose with format=."


def _shown(columns: list[str]) -> str:
    return f"Its columns are {columns[:30]}."


def _detected(columns: list[str]) -> Format:
    claims = {f.name: (f, f.claim(columns)) for f in known_formats().values() if f.claim(columns)}
    fitting = {n: c for n, c in claims.items() if not c[0].last_resort} or claims
    if not fitting:
        known = "\n  ".join(f.described() for f in known_formats().values())
        raise DataError(f"No known format fits the data. {_shown(columns)} {_RENAME} Known formats:\n  {known}")
    best, claim = max(fitting.values(), key=lambda c: len(c[1]))  # of equal ones the first
    rivals = [f for f, other in fitting.values() if not other <= claim]
    if rivals:
        names = " or ".join(repr(f.name) for f in (best, *rivals))
        raise DataError(f"The data could be in more than one format. {_shown(columns)} Say which: format={names}.")
    return best
