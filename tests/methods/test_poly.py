"""PolyConfig: the formula, the tasks of rows, and what the contract promises, which its own tests cannot ask for."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inlay import LoraConfig, PeftModel, PolyConfig, get_peft_model
from inlay.errors import ConfigError, StateError
from tests.tiny import close, ids, llama, mlp, same, scramble, snapshot

TASKS = torch.tensor([2, 0, 2, 1])
FIELDS: dict[str, Any] = {"r": 2, "n_tasks": 3, "n_skills": 3, "n_splits": 2, "target_modules": ["up", "down"]}


class Wrapped(torch.nn.Module):
    """A model that takes no `task_ids`."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        inner = mlp(**changes)
        self.up, self.down = inner.up, inner.down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def base_of(dtype: torch.dtype = torch.float64) -> Any:
    return Wrapped(dtype=dtype).eval()


def view_of(dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    return get_peft_model(base_of(dtype), PolyConfig(**{**FIELDS, **fields}))


def inputs(rows: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 5, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


def by_hand(view: Any, name: str, x: Tensor, task: int) -> Tensor:
    """B_t A_t x / r for one row, split by split."""
    own = getattr(view, name).adapters["default"]
    c, n, d, r = own.A.shape
    z = own.Z[task].view(c, n)
    low = torch.zeros(len(x), r, dtype=x.dtype)
    shares = torch.sigmoid(z) / torch.sigmoid(z).sum(1, keepdim=True)
    for j in range(c):
        low = low + x[:, j * d : (j + 1) * d] @ sum(shares[j, s] * own.A[j, s] for s in range(n))
    return torch.cat([low @ sum(shares[j, s] * own.B[j, s] for s in range(n)) for j in range(c)], 1) / r


def test_the_formula() -> None:
    view, x = scramble(view_of(), 0.5), inputs()
    base = view.unload()
    for row, task in enumerate(TASKS.tolist()):
        h = torch.relu(base.up(x[row]) + by_hand(view, "up", x[row], task))
        close(view(x, task_ids=TASKS)[row], base.down(h) + by_hand(view, "down", h, task))
    assert (view(x, task_ids=TASKS) - base(x)).abs().max() > 1e-2
    assert (view(x, task_ids=TASKS) - view(x, task_ids=TASKS.flip(0))).abs().max() > 1e-3
    close(view(x[:, 0], task_ids=TASKS), view(x, task_ids=TASKS)[:, 0])


def test_a_fresh_adapter_changes_nothing_and_a_disabled_one_neither() -> None:
    fresh, x = view_of(), inputs()
    close(fresh(x, task_ids=TASKS), fresh.unload()(x))
    view = scramble(view_of())
    with view.disable_adapter():
        assert torch.equal(view(x), view.unload()(x))
        assert torch.equal(view(x, task_ids=TASKS), view.unload()(x))


def test_the_initial_values() -> None:
    torch.manual_seed(0)
    own = view_of(n_skills=200, n_splits=1, init_weights=False).requires_grad_(False).up.adapters["default"]
    assert own.A.abs().max() <= 8**-0.5 and own.A.abs().max() > 0.95 * 8**-0.5
    assert own.B.abs().max() <= 2**-0.5 and own.B.abs().max() > 0.95 * 2**-0.5
    assert own.Z.abs().max() <= 1e-3 and bool(own.Z.any())


def test_training_draws_the_skills_and_evaluation_does_not() -> None:
    view, x = scramble(view_of(), 0.5), inputs()
    assert torch.equal(view(x, task_ids=TASKS), view(x, task_ids=TASKS))
    view.train()
    assert not torch.equal(view(x, task_ids=TASKS), view(x, task_ids=TASKS))
    own = view.up.adapters["default"]
    with torch.no_grad():
        own.Z.fill_(0.3)
        torch.manual_seed(0)
        logits = torch.stack([own.mixture(TASKS) for _ in range(2000)])
    # drawn as torch's relaxed Bernoulli, each over their sum
    torch.manual_seed(1)
    q = torch.distributions.RelaxedBernoulli(torch.tensor(1.0), logits=torch.full((2000, 4, 2, 3), 0.3)).rsample()
    p = q / q.sum(-1, keepdim=True)
    close(logits.mean().float(), p.mean(), 1e-6, 1e-6)
    close(logits.std().float(), p.std(), 0.02, 0.0)


def test_every_parameter_gets_a_gradient() -> None:
    view = scramble(view_of()).train()
    view(inputs(), task_ids=TASKS).square().sum().backward()
    for name, p in view.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == p.requires_grad == (".adapters." in name), name


def test_a_saved_adapter_loads_to_equal_outputs(tmp_path: Path) -> None:
    view, x = scramble(view_of()), inputs()
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_of(), tmp_path)
    assert torch.equal(again(x, task_ids=TASKS), view(x, task_ids=TASKS))
    again.save_pretrained(tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_equal_and_independent(how: str) -> None:
    view, x = scramble(view_of()), inputs()
    y = view(x, task_ids=TASKS)
    twin = copy.deepcopy(view) if how == "deepcopy" else pickle.loads(pickle.dumps(view))
    assert torch.equal(twin(x, task_ids=TASKS), y)
    scramble(twin)
    assert torch.equal(view(x, task_ids=TASKS), y) and not torch.equal(twin(x, task_ids=TASKS), y)


def test_it_compiles_to_one_graph() -> None:
    view, x = scramble(view_of()), inputs()
    torch._dynamo.reset()
    compiled = torch.compile(view, fullgraph=True, backend="eager")
    close(compiled(x, task_ids=TASKS), view(x, task_ids=TASKS))
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    view, x = scramble(view_of()), inputs()
    trained = [p for p in view.parameters() if p.requires_grad]
    plain = torch.autograd.grad(view(x, task_ids=TASKS).square().sum(), trained)
    start = torch.zeros((), requires_grad=True)
    checkpoint(lambda a, _: view(a, task_ids=TASKS), x, start, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(trained, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_16_bit_base(dtype: torch.dtype) -> None:
    view = scramble(view_of(dtype))
    assert {p.dtype for p in view.parameters() if p.requires_grad} == {torch.float32}
    x = inputs().to(dtype)  # drawn once: what a seed draws depends on the dtype, in some releases
    y = view(x, task_ids=TASKS)
    assert y.dtype == dtype
    wide = view_of(torch.float32)
    for path, a in view._inlay.placed["default"].items():
        wide._inlay.placed["default"][path].load_state_dict(a.state_dict())
    for name in ("up", "down"):
        getattr(wide, name).weight.data.copy_(getattr(view, name).weight)
        getattr(wide, name).bias.data.copy_(getattr(view, name).bias)
    close(y.float(), wide(x.float(), task_ids=TASKS), 0.05, 0.05)


def test_under_autocast_it_runs() -> None:
    view, x = scramble(view_of(torch.float32)), inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = view(x, task_ids=TASKS)
    close(y.float(), view(x, task_ids=TASKS), 0.05, 0.05)


def test_tasks_go_with_their_rows_in_a_mixed_batch() -> None:
    view, x = scramble(view_of(), 0.5), inputs()
    view.add_adapter("other", PolyConfig(**FIELDS))
    view.set_adapter("other")
    scramble(view, 0.5, seed=3)
    names = ["other", "default", "__base__", "default"]
    mixed = view(x, task_ids=TASKS, adapter_names=names)
    for row, name in enumerate(names):
        if name != "__base__":
            view.set_adapter(name)
        model, given = (view.unload(), {}) if name == "__base__" else (view, {"task_ids": TASKS[row : row + 1]})
        close(mixed[row], model(x[row : row + 1], **given)[0])
    twice = view(x.repeat_interleave(2, 0), task_ids=TASKS, adapter_names=names)
    close(twice, mixed.repeat_interleave(2, 0))
    with pytest.raises(StateError, match=r"task_ids: \(3,\) .* does not fit a batch of 1 rows"):
        view(x, task_ids=TASKS[:3], adapter_names=names)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_recomputed_in_backward_knows_the_tasks_of_its_forward_pass(reentrant: bool) -> None:
    class Recomputed(Wrapped):
        recomputes = False

        def forward(self, x: Tensor) -> Tensor:
            run = super().forward
            return checkpoint(run, x, use_reentrant=reentrant) if self.recomputes else run(x)  # type: ignore[no-any-return]

    view = scramble(get_peft_model(Recomputed(dtype=torch.float64).eval(), PolyConfig(**FIELDS)), 0.5)
    x, tasks = inputs().requires_grad_(), (TASKS, TASKS.flip(0))
    trained = [p for p in view.parameters() if p.requires_grad]
    expected = [torch.autograd.grad(view(x, task_ids=t).square().sum(), trained) for t in tasks]
    view.recomputes = True
    values = [view(x, task_ids=t).square().sum() for t in tasks]
    for value, grads in zip(values, expected, strict=True):
        view.zero_grad()
        value.backward()
        for p, grad in zip(trained, grads, strict=True):
            close(p.grad, grad)


def test_beside_lora_switching_and_deleting() -> None:
    view, x = scramble(view_of()), inputs()
    y = view(x, task_ids=TASKS)
    before = snapshot(view.unload())
    view.add_adapter("lora", LoraConfig(r=2, target_modules=["up"]))
    view.set_adapter("lora")
    scramble(view, seed=3)
    alone = view(x)
    assert torch.equal(view(x, task_ids=TASKS), alone), "LoRA has no tasks"
    view.set_adapter(["default", "lora"])
    assert not torch.equal(view(x, task_ids=TASKS), y)
    view.delete_adapter("lora")
    view.delete_adapter("default")
    assert torch.equal(view(x), view.unload()(x)) and same(snapshot(view.unload()), before)


def test_it_cannot_be_merged() -> None:
    with pytest.raises(StateError, match="cannot be merged"):
        view_of().merge_adapter()


def test_generation_with_beams_knows_the_tasks_of_rows() -> None:
    config = PolyConfig(r=2, n_tasks=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    view = scramble(get_peft_model(llama(), config), 2.0)
    prompt, options = ids(2, 4) + 3, {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    both = view.generate(input_ids=prompt, task_ids=torch.tensor([0, 1]), **options)
    for row in range(2):
        own = view.generate(input_ids=prompt[row : row + 1], task_ids=[row], **options)
        assert torch.equal(own[0], both[row])
    with pytest.raises(StateError, match="call the model with task_ids"):
        view.generate(input_ids=prompt, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "Poly needs to know each row's task: call the model with task_ids, one per row"),
        ([0, 1, 2], r"task_ids: \(3,\) of torch.int64 does not fit a batch of 4 rows"),
        ([[0, 1, 2, 0]], r"task_ids: \(1, 4\) of torch.int64 does not fit"),
        ([0.0, 1.0, 2.0, 0.0], r"task_ids: \(4,\) of torch.float32 does not fit"),
        ([0, 1, 2, 3], r"task_ids=\[0, 1, 2, 3\]: the adapter has the tasks 0 to 2 \(n_tasks=3\)"),
        ([0, 1, 2, -1], r"task_ids=\[0, 1, 2, -1\]"),
    ],
)
def test_tasks_that_do_not_fit(given: Any, message: str) -> None:
    view, x = view_of(), inputs()
    with pytest.raises(StateError, match=message):
        view(x) if given is None else view(x, task_ids=given)
    assert view._inlay.active.facts.task_ids is None
    view(x, task_ids=TASKS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_skills": 0}, "n_skills=0 is not allowed: expected an integer of at least 1"),
        ({"poly_type": "mhr"}, "poly_type='mhr' is not allowed: expected one of 'poly'"),
        ({"init_weights": 1}, "init_weights=1 is not allowed"),
        ({"n_splits": 3}, "n_splits=3 is not allowed: expected a divisor of the 8 inputs or outputs of 'up'"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(**fields)
