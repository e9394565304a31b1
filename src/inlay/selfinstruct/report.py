"""What a run may use, and how far it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from inlay.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """What a run may use, all its sessions together. It is never passed: before a call is made, the most that it can
    take (a token per byte of its prompts, and the whole completion budget) must be left.

    Attributes:
        tokens: read and written; None for no limit.
        money: in the currency of the prices; None for no limit.
        prompt_price, completion_price: per million tokens.
    """

    tokens: int | None = None
    money: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:
                raise ConfigError.of(name, value, "a number of at least 0")
        if self.money is not None and not self.prompt_price + self.completion_price:
            raise ConfigError("money is limited without prices: give prompt_price and completion_price.", "money")

    def cost(self, prompt: int, completion: int) -> float:
        """What these tokens cost."""
        return (prompt * self.prompt_price + completion * self.completion_price) / 1e6

    def allows(self, prompt: int, completion: int) -> bool:
        """Whether so many tokens are within both limits."""
        within = self.tokens is None or prompt + completion <= self.tokens
        return within and (self.money is None or self.cost(prompt, completion) <= self.money)


@dataclass
class Report:
    """How far a run is.

    Attributes:
        output: the file of the rows.
        rows: accepted, all sessions together.
        accepted: of them, in this session.
        calls: answered and judged, all sessions together.
        skipped: calls whose prompt left no room for an answer.
        dropped: reason -> tasks: "malformed", the names of the filters, "similar".
        prompt_tokens, completion_tokens: used, all sessions together, and `cost` of them by the budget's prices.
        stopped: "" while it runs, then "count", "budget" (the next call might pass it) or "barren" (nothing accepted
            in `patience` calls).
    """

    output: Path
    rows: int = 0
    accepted: int = 0
    calls: int = 0
    skipped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    stopped: str = ""

    def __str__(self) -> str:
        reasons = ", ".join(f"{n} {name}" for name, n in self.dropped.most_common()) or "none"
        text = f"{self.rows} rows ({self.accepted} new) from {self.calls} calls; dropped: {reasons}"
        text += f"; {self.skipped} calls skipped as too long" * bool(self.skipped)
        text += f"; {self.prompt_tokens} + {self.completion_tokens} tokens"
        text += f", {self.cost:.4f} spent" * bool(self.cost)
        stopped = {
            "budget": " Stopped: the next call might pass the budget.",
            "barren": " Stopped: the latest answers held nothing that could be kept.",
        }
        return f"{text}.{stopped.get(self.stopped, '')}"
