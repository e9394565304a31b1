"""The elementary operations: against their formulas, entry by entry in Python's floats."""

from __future__ import annotations

import itertools

import pytest
import torch

from inlay.merge.task_arithmetic import METHODS, combine, drop_random, elect_sign, keep_largest
from tests.tiny import close

WEIGHTS = [0.7, -0.4, 1.5]


def tasks(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape or (4, 6), generator=generator, dtype=torch.float64) for _ in WEIGHTS]


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def ties_at(entries: list[float], weights: list[float], method: str) -> float:
    """The paper's elect and merge steps, at one place."""
    votes = sum(entries) if method == "total" else sum(map(sign, entries))
    elected = 1 if votes >= 0 else -1
    chosen = [w * t for w, t in zip(weights, entries, strict=True) if sign(t) == elected]
    return sum(chosen) / max(1, len(chosen))


def by_places(found: list[torch.Tensor], method: str) -> torch.Tensor:
    values = [
        ties_at([float(t[place]) for t in found], WEIGHTS, method)
        for place in itertools.product(*map(range, found[0].shape))
    ]
    return torch.tensor(values, dtype=torch.float64).view(found[0].shape)


def trimmed(t: torch.Tensor, count: int) -> torch.Tensor:
    least = sorted(map(abs, t.flatten().tolist()), reverse=True)[count - 1] if count else float("inf")
    return torch.where(t.abs() >= least, t, 0.0)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.55, 1.0])
def test_keep_largest(density: float) -> None:
    for t in tasks():
        kept = keep_largest(t, density)
        assert int((kept != 0).sum()) == int(density * t.numel())
        assert torch.equal(kept, trimmed(t, int(density * t.numel())))


def test_equal_magnitudes_do_not_add_up() -> None:
    assert int((keep_largest(torch.ones(3, 4), 0.5) != 0).sum()) == 6


def test_drop_random() -> None:
    t = torch.randn(200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = drop_random(t, 0.25, torch.Generator().manual_seed(1))
    kept = found != 0
    assert abs(float(kept.double().mean()) - 0.25) < 0.01  # 60000 draws: five deviations
    close(found[kept], t[kept] / 0.25)
    assert torch.equal(found, drop_random(t, 0.25, torch.Generator().manual_seed(1)))
    assert not torch.equal(found, drop_random(t, 0.25, torch.Generator().manual_seed(2)))
    assert drop_random(t, 1.0) is t
    # the mean over many draws is the tensor
    one = torch.tensor([2.0, -3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    mean = torch.stack([drop_random(one, 0.5, generator) for _ in range(4000)]).mean(0)
    close(mean, one, 0, 0.2)


def test_elect_sign() -> None:
    given = torch.tensor([[3.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 0.0], [-1.0, 3.0, 0.0, 0.0]])
    assert elect_sign(given, "total").tolist() == [1, 1, 1, 1]
    assert elect_sign(given, "frequency").tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4), (7,)], ids=str)
def test_sums(shape: tuple[int, ...]) -> None:
    given = tasks(*shape)
    close(combine("linear", given, WEIGHTS), sum(w * t for w, t in zip(WEIGHTS, given, strict=True)))
    kept = [trimmed(t, int(0.4 * t.numel())) for t in given]
    close(combine("magnitude_prune", given, WEIGHTS, 0.4), sum(w * t for w, t in zip(WEIGHTS, kept, strict=True)))


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_ties(density: float, majority: str) -> None:
    given = tasks()
    expected = by_places([trimmed(t, int(density * t.numel())) for t in given], majority)
    close(combine("ties", given, WEIGHTS, density, majority), expected)


@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_dare(majority: str) -> None:
    given = tasks()
    draws = torch.Generator().manual_seed(9)
    dropped = [t * torch.bernoulli(torch.full_like(t, 0.6), generator=draws) / 0.6 for t in given]
    seed = torch.Generator().manual_seed
    close(combine("dare_ties", given, WEIGHTS, 0.6, majority, seed(9)), by_places(dropped, majority))
    expected = sum(w * t for w, t in zip(WEIGHTS, dropped, strict=True))
    close(combine("dare_linear", given, WEIGHTS, 0.6, generator=seed(9)), expected)


@pytest.mark.parametrize("method", METHODS)
def test_one_tensor_whole_is_itself(method: str) -> None:
    (t, *_) = tasks()
    close(combine(method, [t], [1.0], 1.0), t)
