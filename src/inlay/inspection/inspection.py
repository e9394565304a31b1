"""`Inspection`: what an adapter's folder holds, and whether it is sound."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay import readable
from inlay.core.targets import layer_index

_SHOWN = 3  # layers with the largest and the smallest norm, and faults of one kind
_WIDTH = 120  # characters of a line
_BARS = "▁▂▃▄▅▆▇█"
_OF = {
    "change": "change of the weights, ||W' - W||",
    "product": "low-rank part, ||s B A|| (the method does more with it, which needs the base)",
    "tensors": "size of the tensors (the change itself needs the base)",
}


@dataclass
class Inspection:
    """One adapter's folder.

    Attributes:
        folder: where it is.
        method: `peft_type`, or None if the config cannot be read.
        variant: of the method, such as "dora"; "" if there is none.
        formula: what the method computes.
        task: `task_type`.
        base: what the files say of the base: name, revision, and of its fingerprint class, vocab_size, dtype, config.
        written_by: the release of Inlay or peft that wrote it.
        verified: whether every file is the one that was saved; False without a manifest.
        files: name -> bytes.
        settings: fields of the config that are not at their default.
        targets: last part of the targeted modules' paths -> how many there are.
        tensors, parameters: how many.
        dtypes: dtype -> how many tensors.
        ranks: rank -> how many layers have it.
        norms: path of a layer -> norm.
        norms_of: "change" (||W' - W||), "product" (||s B A||, of which the method makes more) or "tensors".
        dead: ranks that do nothing, of how many.
        problems: why it is not sound: damage, NaN, tensors that are missing or do not fit, no training.
        notes: what else is worth knowing.
        vllm: why vLLM would not load it; None if that could not be told.
    """

    folder: Path
    method: str | None = None
    variant: str = ""
    formula: str = ""
    task: str | None = None
    base: dict[str, Any] = field(default_factory=dict)
    written_by: str = ""
    verified: bool = False
    files: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    norms_of: str = "tensors"
    dead: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    vllm: list[str] | None = None

    @property
    def healthy(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def by_depth(self) -> dict[int, float]:
        """Number of a layer of the model -> norm of all that changes there: the root of the sum of squares."""
        squares: dict[int, float] = {}
        for path, norm in self.norms.items():
            at = layer_index(path + ".", None)
            if at is not None:
                squares[at] = squares.get(at, 0.0) + norm * norm
        return {at: squares[at] ** 0.5 for at in sorted(squares)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        own = dataclasses.asdict(self)
        return {**own, "folder": str(self.folder), "healthy": self.healthy, "by_depth": self.by_depth()}

    def __str__(self) -> str:
        rows = [
            ("method", " ".join(filter(None, [self.method or "unknown", self.variant and f"({self.variant})"]))),
            ("", self.formula),
            ("task", self.task or ""),
            ("base", self._base()),
            ("written by", self.written_by + (", checksums hold" if self.verified else "")),
            ("files", ", ".join(f"{name} {readable.size(size)}" for name, size in self.files.items())),
            ("tensors", f"{self.tensors}, {_counted(self.dtypes)}; {self.parameters:,} parameters"),
            ("settings", ", ".join(f"{name}={value}" for name, value in self.settings.items())),
            ("targets", ", ".join(f"{name} x {count}" for name, count in self.targets.items())),
            ("rank", _ranks(self.ranks)),
        ]
        lines = [str(self.folder)]
        for name, value in rows:
            lines += _wrapped(f"  {name:<12}{value}", 14) if value else []
        return "\n".join([*lines, *self._norm_lines(), *self._health_lines()])

    def _base(self) -> str:
        base = self.base
        name = " ".join(filter(None, [base.get("name") or "not named", base.get("revision")]))
        about = [base.get("class"), base.get("dtype"), base.get("vocab_size") and f"{base['vocab_size']} tokens"]
        about += [f"config {str(base['config'])[:12]}"] if base.get("config") else []
        return f"{name} ({', '.join(filter(None, about))})" if any(about) else name

    def _norm_lines(self) -> list[str]:
        if not self.norms:
            return []
        ordered = sorted(self.norms.items(), key=lambda item: -item[1])
        shown = ordered if len(ordered) <= 2 * _SHOWN else [*ordered[:_SHOWN], ("...", -1.0), *ordered[-_SHOWN:]]
        width = max(len(path) for path, _ in shown)
        lines = ["", f"  {_OF[self.norms_of]}, largest first"]
        lines += [f"    {path:<{width}}  {norm:.3g}" if norm >= 0 else f"    {path}" for path, norm in shown]
        depth = self.by_depth()
        if len(depth) > 1:
            low, high = min(depth.values()), max(depth.values())
            bars = "".join(
                _BARS[round((len(_BARS) - 1) * norm / high)] if high else _BARS[0] for norm in depth.values()
            )
            lines.append(f"  by depth, {min(depth)} to {max(depth)}  {bars}  {low:.3g} to {high:.3g}")
        return lines

    def _health_lines(self) -> list[str]:
        lines = ["", f"  health      {'sound' if self.healthy else 'NOT SOUND'}"]
        for line in [*(f"problem: {text}" for text in self.problems), *(f"note: {text}" for text in self.notes)]:
            lines += _wrapped(f"    {line}", 6)
        if self.vllm is not None:
            lines.append(f"  vLLM        {'would reject it' if self.vllm else 'would load it'}")
            for reason in self.vllm:
                lines += _wrapped(f"    {reason}", 6)
        return lines


def _wrapped(line: str, indent: int) -> list[str]:
    return textwrap.wrap(line, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def some(items: Iterable[object]) -> str:
    """The first items, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(map(str, listed[:_SHOWN])) + more


def _counted(dtypes: Mapping[str, int]) -> str:
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()) or "none"


def _ranks(ranks: Mapping[int, int]) -> str:
    if len(ranks) <= 1:
        return "".join(map(str, ranks))
    return f"{min(ranks)} to {max(ranks)}: " + ", ".join(f"{ranks[r]} layers of {r}" for r in sorted(ranks))
