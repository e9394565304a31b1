"""What is installed, beside what Inlay and its extras ask for."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.diagnosis.finding import BROKEN, NOTE, OK, Finding

TRAINS = "cli"
"""The extra that `inlay train` needs."""

_HERE = Path(__file__).parents[1]  # the package
_NOT_SHOWN = ("test",)  # for those who work on Inlay itself
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[([\w, -]*)\])?\s*([^;]*)")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


@dataclass
class Wanted:
    """A package that Inlay asks for.

    Attributes:
        specifier: versions, such as ">=2.10".
        extras: which extras bring it; none if Inlay itself does.
        essential: whether training needs it.
    """

    name: str
    specifier: str
    extras: list[str] = field(default_factory=list)
    essential: bool = False


def installed() -> Iterator[Finding]:
    """Inlay, and each package that it or an extra asks for."""
    yield Finding("packages", "inlay", f"{sys.modules['inlay'].__version__} at {_HERE}")
    for wanted in packages():
        yield _look(wanted)


def peft() -> Iterator[Finding]:
    """Which package `import peft` means here."""
    drop_in = _HERE / "peft" / "site"
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        yield Finding("packages", "peft", "not installed, nor needed: python -m inlay.peft runs scripts that import it")
    elif Path(spec.origin).is_relative_to(drop_in):
        others = [p for p in map(Path, sys.path) if p != drop_in and (p / "peft" / "__init__.py").is_file()]
        over = f", in place of the one in {others[0]}" if others else ""
        yield Finding("packages", "peft", f"import peft means Inlay in this process{over}", NOTE)
    else:
        version = importlib.metadata.version("peft")
        yield Finding("packages", "peft", f"{version}, beside Inlay; python -m inlay.peft puts Inlay in its place")


def packages() -> list[Wanted]:
    """Every package that Inlay and its extras ask for, what training needs first."""
    asked = list(requirements())
    inside = [(extras, inner) for extras, name, inner, _ in asked if name == "inlay"]  # extras that ask for others
    needed, reached = {""}, {TRAINS}
    while reached - needed:
        needed |= reached
        reached = {one for extras, inner in inside if extras & needed for one in inner}
    found: dict[str, Wanted] = {}
    for extras, name, _, specifier in asked:
        shown = extras - set(_NOT_SHOWN)
        if name == "inlay" or not shown:
            continue
        own = found.setdefault(name, Wanted(name, specifier))
        own.extras += sorted(shown - {""} - set(own.extras))
        own.essential |= bool(shown & needed)
    return sorted(found.values(), key=lambda wanted: not wanted.essential)


def requirements() -> Iterator[tuple[set[str], str, set[str], str]]:
    """(extras or {""}, package, extras of it, versions), from the installed package or from the source tree."""
    for text in _declared():
        match = _REQUIREMENT.match(text)
        assert match is not None
        name, inner, specifier = match.groups()
        extras = set(_EXTRA.findall(text)) or {""}
        yield extras, name.lower(), {e.strip() for e in (inner or "").split(",")} - {""}, specifier.strip().strip("()")


def _declared() -> Iterable[str]:
    try:
        return importlib.metadata.requires("inlay") or []
    except importlib.metadata.PackageNotFoundError:
        return _of_source(_HERE.parent.parent / "pyproject.toml")


def _of_source(file: Path) -> list[str]:
    """The requirements in a source tree, as an installed package has them."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project: dict[str, Any] = toml.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return [*project["dependencies"], *(f"{text}; extra == '{name}'" for name, own in extras for text in own)]


def _look(wanted: Wanted) -> Finding:
    own = wanted.name if wanted.name in wanted.extras else next(iter(wanted.extras), "")
    extra = TRAINS if wanted.essential else own
    install = f"pip install 'inlay[{extra}]'"
    brings = f", for {', '.join(wanted.extras)}" if wanted.extras and not wanted.essential else ""
    bad = BROKEN if wanted.essential else NOTE
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", wanted.name, f"not installed{brings}", bad, install)
    if not fits(version, wanted.specifier):
        value = f"{version}, but {wanted.specifier} is needed{brings}"
        return Finding("packages", wanted.name, value, bad, f"pip install '{wanted.name}{wanted.specifier}'")
    return Finding("packages", wanted.name, f"{version} ({wanted.specifier}){brings}", OK)


def fits(version: str, specifier: str) -> bool:
    """Whether a version is one of those asked for; where `packaging` is missing every one is."""
    if importlib.util.find_spec("packaging") is None:
        return True
    asked = importlib.import_module("packaging.specifiers").SpecifierSet(specifier)
    return bool(asked.contains(version, prereleases=True))
