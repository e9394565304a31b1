"""BOFT: butterflies of dense permutations and block-diagonal matrices, as the paper draws them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import BOFTConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import close, scramble


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    if "boft_block_num" in fields:
        fields = {"boft_block_size": 0, **fields}
    view = get_peft_model(nn.Sequential(host).eval(), BOFTConfig(**{"target_modules": ["0"], **fields}))
    return scramble(view, 0.4) if random else view


def permutation(features: int, segment: int, half: int) -> Tensor:
    """P with (P v)[k] = v[order[k]]: in each segment, half-blocks of even number first, then those of odd number."""
    order = []
    for start in range(0, features, segment):
        chunks = [list(range(c, c + half)) for c in range(start, start + segment, half)]
        order += [k for chunk in chunks[0::2] + chunks[1::2] for k in chunk]
    return torch.eye(features, dtype=torch.float64)[order]


def rotation(view: Any) -> Tensor:
    """R = B_m ... B_1."""
    at = view[0].adapters["default"]
    one = torch.eye(at.size, dtype=torch.float64)
    features = at.blocks * at.size
    r = torch.eye(features, dtype=torch.float64)
    for i in range(at.factors):
        a = at.R[i].detach().double()
        q = (a - a.mT) / 2
        blocks = torch.block_diag(*((one - q) @ torch.linalg.inv(one + q)))
        p = permutation(features, at.size * 2**i, at.size // 2) if i else torch.eye(features, dtype=torch.float64)
        r = p @ blocks @ p.T @ r
    return r


CASES = [
    {},
    {"boft_block_num": 2},
    {"boft_block_size": 3},
    {"boft_n_butterfly_factor": 2},
    {"boft_n_butterfly_factor": 3, "boft_block_size": 2},
    {"boft_n_butterfly_factor": 3, "boft_block_num": 4},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(fields: dict[str, Any], bias: bool) -> None:
    host = nn.Linear(24, 5, bias=bias).double()
    view = view_of(host, **fields)
    r, s = rotation(view), view[0].adapters["default"].s.detach()
    close(r @ r.T, torch.eye(24, dtype=torch.float64))
    w = s * (host.weight @ r.T)
    close(view[0].adapters["default"].weight(host.weight), w)
    for x in (torch.randn(24), torch.randn(2, 3, 24), torch.randn(0, 24), torch.randn(24, 4).T):
        x = x.double()
        close(view(x), x @ w.T + (host.bias if bias else 0))


def test_every_input_reaches_every_output_with_enough_factors() -> None:
    host = nn.Linear(16, 5).double()
    one, all_ = view_of(host), view_of(host, boft_block_size=2, boft_n_butterfly_factor=4)
    assert int((rotation(one) != 0).sum()) == 4 * 16
    assert bool((rotation(all_).abs() > 1e-12).all())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2, "dilation": 2}], ids=str)
def test_convolutions(dims: int, options: dict[str, Any]) -> None:
    host = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 6, 2, **options).double()
    x = torch.randn(2, 4, *[5, 6, 7][:dims], dtype=torch.float64)
    close(view_of(host, random=False)(x), host(x))
    view = view_of(host)
    s = view[0].adapters["default"].s.detach()
    w = (s.T * (host.weight.flatten(1) @ rotation(view).T)).reshape(host.weight.shape)
    close(view(x), host._conv_forward(x, w, host.bias))


def test_shapes_keys_and_initial_values() -> None:
    def shapes(host: Any, **fields: Any) -> dict[str, tuple[int, ...]]:
        found = view_of(host, random=False, **fields)[0].adapters["default"].tensors()
        assert not found["boft_R"].any() and bool((found["boft_s"] == 1).all())
        return {k: tuple(v.shape) for k, v in found.items()}

    assert shapes(nn.Linear(24, 5)) == {"boft_R": (1, 6, 4, 4), "boft_s": (5, 1)}
    assert shapes(nn.Linear(24, 5), boft_n_butterfly_factor=2) == {"boft_R": (2, 6, 4, 4), "boft_s": (5, 1)}
    assert shapes(nn.Conv2d(4, 6, 3)) == {"boft_R": (1, 9, 4, 4), "boft_s": (1, 6)}
    at = view_of(nn.Linear(400, 3000), random=False, init_weights=False)[0].adapters["default"]
    assert 0.095 < float(at.R.detach().std()) < 0.105 and 0.09 < float(at.s.detach().std()) < 0.11
    assert 0.99 < float(at.s.detach().mean()) < 1.01


def test_dropout_turns_blocks_of_one_factor_off_in_training() -> None:
    view = view_of(nn.Linear(64, 3).double(), boft_dropout=0.3, boft_n_butterfly_factor=3)
    at = view[0].adapters["default"]
    whole, one = at.rotations(torch.float64), torch.eye(4, dtype=torch.float64)
    view.train()
    chosen = set()
    for _ in range(30):
        off = (at.rotations(torch.float64) == one).all(-1).all(-1)
        assert int(off.sum()) == 4  # 0.3 of 16, rounded down
        (factor,) = off.any(1).nonzero().flatten().tolist()
        chosen.add(factor)
        assert torch.equal(at.eval().rotations(torch.float64), whole)
        at.train()
    assert chosen == {0, 1, 2}


def test_16_bits() -> None:
    host, x = nn.Linear(24, 5).bfloat16(), torch.randn(3, 24).bfloat16()
    view = view_of(host, boft_n_butterfly_factor=2)
    w = view[0].adapters["default"].s.double() * (host.weight.double() @ rotation(view).T)
    assert view(x).dtype is torch.bfloat16
    exact = x.double() @ w.T + host.bias.double()
    torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.04)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boft_block_num": 3, "boft_block_size": 4}, r"boft_block_num=3 is not allowed: expected one of .* to be 0"),
        ({"boft_block_num": 0}, r"boft_block_num=0 is not allowed: expected one of .* boft_block_size is 0"),
        ({"boft_block_size": 5}, r"boft_block_size=5 is not allowed: expected a divisor of 24, the inputs of '0'"),
        ({"boft_block_num": 7}, r"boft_block_num=7 is not allowed: expected a divisor of 24, the inputs of '0'"),
        (
            {"boft_n_butterfly_factor": 0},
            r"boft_n_butterfly_factor=0 is not allowed: expected an integer of at least 1",
        ),
        ({"boft_n_butterfly_factor": 3}, r"boft_n_butterfly_factor=3 .*multiple of 2\^\(m-1\); '0' has 6 blocks of 4"),
        ({"boft_n_butterfly_factor": 2, "boft_block_size": 3}, r"blocks of even size.*'0' has 8 blocks of 3 inputs"),
        ({"boft_dropout": 2}, r"boft_dropout=2 is not allowed"),
        ({"bias": "boft_only"}, r"BOFTConfig does not implement `bias`"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(nn.Linear(24, 5), **fields)
