"""The LoRA kernels on a GPU, against float64. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from inlay import LoraConfig, get_peft_model
from inlay.kernels.lora import lora_add, lora_linear
from tests import tiny

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),  # the first backward of a process
]

# relative error of the result: rounding of the operands and of the output
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.detach().double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", ["linear", "add"])
def test_values_and_gradients_agree_with_float64(dtype: torch.dtype, bias: bool, kernel: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    x = torch.randn(3, 37, 96, device="cuda", dtype=dtype, requires_grad=True)
    w = torch.randn(160, 96, device="cuda", dtype=dtype) / 10
    c = torch.randn(160, device="cuda", dtype=dtype) if bias else None
    a = (torch.randn(8, 96, device="cuda") / 10).requires_grad_()
    b = (torch.randn(160, 8, device="cuda") / 3).requires_grad_()
    if kernel == "linear":
        y = lora_linear(x, w, c, a, b, 1.5)
    else:
        y = lora_add(torch.nn.functional.linear(x, w, c), x, a, b, 1.5)
    assert y.dtype == dtype
    probe = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, a, b], probe)
    assert [g.dtype for g in got] == [dtype, torch.float32, torch.float32]
    exact = [t.detach().double().requires_grad_() for t in (x, a, b)]
    full = w.double() + 1.5 * exact[2] @ exact[1]
    want = exact[0] @ full.T + (0 if c is None else c.double())
    assert relative(y, want.detach()) < TOLERANCE[dtype]
    for mine, theirs in zip(got, torch.autograd.grad(want, exact, probe.double()), strict=True):
        assert relative(mine, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_view_trains_and_its_base_does_not_change(dtype: torch.dtype) -> None:
    base = tiny.llama().to("cuda", dtype)
    ids = torch.randint(0, tiny.VOCAB, (2, 8), device="cuda")
    before = base(ids).logits
    view = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    parameters = [p for p in view.parameters() if p.requires_grad]
    assert {p.device.type for p in parameters} == {"cuda"}
    assert {p.dtype for p in parameters} == {torch.float32}
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = view(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(base(ids).logits, before)
    merged = view.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, view.eval()(ids).logits, rtol=0.05, atol=0.05)
