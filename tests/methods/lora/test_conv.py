"""LoRA on convolutions: A a convolution like the host's, B a pointwise one; groups, strides, paddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay import LoraConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import close, scramble

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def view_of(conv: Any, random: bool = True, **fields: Any) -> Any:
    view = get_peft_model(
        nn.Sequential(conv).eval(), LoraConfig(**{"target_modules": ["0"], "r": 4, "lora_alpha": 6, **fields})
    )
    return scramble(view, 0.5) if random else view


def update(view: Any) -> Tensor:
    """s B A, one kernel point, output and input channel at a time."""
    adapter, g = view[0].adapters["default"], view[0].groups
    a, b = adapter.A.double().flatten(2), adapter.B.double().flatten(1)
    out, per, rank = b.shape[0], b.shape[0] // g, adapter.r // g
    total = torch.zeros(out, *a.shape[1:], dtype=torch.float64)
    for o in range(out):
        group = o // per
        for c in range(rank):
            total[o] += b[o, c] * a[group * rank + c]
    return adapter.scale * total.reshape(view.unload()[0].weight.shape)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "bias": False},
        {"groups": 2},
        {"groups": 4, "padding": 1, "stride": 2},
        {"padding": 1, "padding_mode": "replicate"},
        {"padding": (1,), "padding_mode": "circular", "groups": 2},
    ],
    ids=str,
)
def test_the_formula(dims: int, options: dict[str, Any]) -> None:
    if isinstance(options.get("padding"), tuple):
        options = {**options, "padding": options["padding"] * dims}
    conv = CONV[dims](4, 8, 3, **options).double()
    view = view_of(conv)
    x = torch.randn(2, 4, *[6, 7, 8][:dims], dtype=torch.float64)
    close(view[0].adapters["default"].weight(conv.weight) - conv.weight, update(view))
    expected = conv._conv_forward(x, conv.weight + update(view), conv.bias)
    close(view(x), expected)
    close(view(x[0]), expected[0])
    close(view.merge_and_unload()(x), expected)


def test_shapes_and_keys() -> None:
    adapter = view_of(nn.Conv2d(6, 8, (3, 5), groups=2))[0].adapters["default"]
    assert adapter.A.shape == (4, 3, 3, 5) and adapter.B.shape == (8, 2, 1, 1)
    assert set(adapter.tensors()) == {"lora_A.weight", "lora_B.weight"}


def test_the_rank_is_a_multiple_of_the_groups() -> None:
    with pytest.raises(ConfigError, match=r"r=3 is not allowed: expected a multiple of the 2 groups.*'0'"):
        view_of(nn.Conv1d(4, 4, 1, groups=2), r=3)
    with pytest.raises(ConfigError, match="r=5"):
        view_of(nn.Conv1d(4, 4, 1, groups=2), rank_pattern={"0": 5})


def test_initial_values() -> None:
    for init in (True, "gaussian"):
        adapter = view_of(nn.Conv2d(32, 32, 3), random=False, r=16, init_lora_weights=init)[0].adapters["default"]
        assert adapter.A.any() and not adapter.B.any()
    bound = 1 / (32 * 9) ** 0.5
    adapter = view_of(nn.Conv2d(32, 32, 3), random=False, r=16)[0].adapters["default"]
    assert 0.95 * bound < float(adapter.A.detach().abs().max()) <= bound
    adapter = view_of(nn.Conv2d(32, 32, 3), random=False, init_lora_weights=False)[0].adapters["default"]
    assert adapter.A.any() and adapter.B.any()
    with pytest.raises(ConfigError, match=r"init_lora_weights='orthogonal' is not allowed.*on convolutions"):
        view_of(nn.Conv2d(4, 4, 3), init_lora_weights="orthogonal")


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_bias(dims: int) -> None:
    conv = CONV[dims](4, 6, 3).double()
    view = view_of(conv, bias="lora_only")
    x = torch.randn(2, 4, *[6, 7, 8][:dims], dtype=torch.float64)
    b = view[0].adapters["default"].b
    assert not torch.equal(b, conv.bias)
    close(view(x), conv._conv_forward(x, conv.weight + update(view), b))


def test_dropout_in_training_only() -> None:
    view = view_of(nn.Conv1d(4, 6, 1).double(), lora_dropout=1.0)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    assert not torch.equal(view(x), view.unload()(x))
    close(view.train()(x), view.unload()(x))


def test_16_bits() -> None:
    conv = nn.Conv2d(4, 8, 3, groups=2).bfloat16()
    view = view_of(conv)
    x = torch.randn(2, 4, 6, 6).bfloat16()
    y = view(x)
    assert y.dtype is torch.bfloat16 and view[0].adapters["default"].A.dtype is torch.float32
    exact = F.conv2d(x.double(), conv.weight.double() + update(view), conv.bias.double(), groups=2)
    torch.testing.assert_close(y.double(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))
    y.float().sum().backward()
    assert view[0].adapters["default"].A.grad.dtype is torch.float32
