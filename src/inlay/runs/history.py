"""The numbers of a run over its steps: `metrics.jsonl` as series, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

Point = tuple[int, float]
"""A step, and a number."""

STOPPED = "stopped"
"""The key of the line that a run which did not come to its end leaves: why."""


@dataclass(frozen=True)
class History:
    """Lines of `metrics.jsonl`. Numbers that are missing, NaN or infinite are passed over."""

    lines: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, lines: Iterable[Any]) -> History:
        """Of what `Run.metrics()` gives."""
        return cls(tuple(line for line in lines if isinstance(line, dict) and _finite(line.get("step"))))

    def series(self, key: str) -> list[Point]:
        """The points at which `key` was logged."""
        return [(int(line["step"]), float(line[key])) for line in self.lines if _finite(line.get(key))]

    @property
    def losses(self) -> list[Point]:
        """Of training; a point is the mean since the one before it."""
        return self.series("loss")

    @property
    def evaluations(self) -> list[Point]:
        """Held-out losses. The one at step 0 is the base's."""
        return self.series("eval_loss")

    @property
    def best(self) -> Point | None:
        """The lowest held-out loss after step 0."""
        trained = [point for point in self.evaluations if point[0] > 0]
        return min(trained, key=lambda point: point[1], default=None)

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def stopped(self) -> str | None:
        """Why the run stopped, if that was the last that happened."""
        return str(self.lines[-1][STOPPED]) if self.lines and STOPPED in self.lines[-1] else None

    # ------------------------------------------------------------------ cost

    @property
    def last_time(self) -> float | None:
        """When the last line was written, in seconds since 1970."""
        times = [float(line["time"]) for line in self.lines if _finite(line.get("time"))]
        return times[-1] if times else None

    @property
    def seconds(self) -> float | None:
        """The time spent training, summed over sessions."""
        return max((v for _, v in self.series("seconds")), default=None)

    @property
    def sessions(self) -> int:
        """How many times the run was started."""
        return int(max((v for _, v in self.series("session")), default=1))

    @property
    def tokens(self) -> int | None:
        """Tokens seen, padding included."""
        seen = self.series("num_input_tokens_seen")
        return int(max(v for _, v in seen)) if seen else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median over the logs."""
        rates = [v for _, v in self.series("tokens_per_second")]
        return median(rates) if rates else None

    @property
    def memory(self) -> int | None:
        """The most memory used, in bytes."""
        return int(max((v for _, v in self.series("memory_bytes")), default=0)) or None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
