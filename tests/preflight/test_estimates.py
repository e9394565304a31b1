"""What a recipe is said to take, against what it takes: the allocator's own record, files on disk, counts by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)

from inlay.data import prepare
from inlay.errors import ConfigError, StateError, TargetError
from inlay.preflight import estimates as module
from inlay.preflight.estimates import Estimates, changed, padded_tokens
from inlay.preflight.machine import free_memory, product_rate
from inlay.preflight.rehearsal import Memory, Rehearsal
from inlay.recipe.base import load_model, load_tokenizer
from inlay.recipe.recipe import FULL, Recipe, methods
from inlay.recipe.trained import trained
from inlay.status import count_parameters
from inlay.train.arguments import training_arguments
from tests.train import tiny

WIDE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL = {  # fields without which a method does not fit the tiny base
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 16},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "trainable_tokens": {"token_indices": [1, 2]},
    "multitask_prompt_tuning": {"num_tasks": 2, "num_virtual_tokens": 4},
    "fourierft": {"n_frequency": 100},
}
REFUSED = {"bitfit": TargetError, "poly": StateError, "multitask_prompt_tuning": StateError}  # by this base, or by rows


def save(model: Any, folder: Path) -> Path:
    """A base with the tiny tokenizer."""
    tiny.base(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("bases")
    size = len(load_tokenizer(tiny.recipe(root)))
    llama = LlamaConfig(
        **WIDE,
        vocab_size=size,
        intermediate_size=128,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    gpt2 = GPT2Config(vocab_size=size, n_embd=64, n_layer=3, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0)
    made = {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2)}
    return {name: str(save(model, root / name)) for name, model in made.items()}


def asked(folder: Path, base: str, **changes: Any) -> tuple[Recipe, Estimates]:
    recipe = tiny.recipe(folder, **{"model.name": base, "train.batch": 4, **changes})
    tokenizer = load_tokenizer(recipe)
    return recipe, Estimates(recipe, prepare(recipe.data.train, tokenizer, max_length=96), tokenizer)


def padded(batch: dict[str, Any]) -> dict[str, Any]:
    """With a row that is shorter, as there is one in almost every batch: without one no mask is made."""
    if "attention_mask" in batch:
        batch["attention_mask"][0, -1] = 0
    return batch


def taken(recipe: Recipe, batch: dict[str, Any]) -> int:
    """Bytes at the peak of the same step on real tensors, as the allocator counts them."""
    arguments = training_arguments(recipe, Path(recipe.out))
    model = trained(recipe, load_model(recipe), 30)
    model.train()
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    own = [p for p in model.parameters() if p.requires_grad]
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for p in own:
            p.grad = torch.zeros_like(p)
        cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer = cls(own, **options)
        optimizer.step()
        if recipe.train.accumulation == 1:
            optimizer.zero_grad()
        loss = model(**padded(batch)).loss
        loss.backward()
        del loss
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return sum(held.values()) + peak


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.gradient_checkpointing": True},
        {"adapter.method": FULL},
        {"adapter.method": FULL, "train.accumulation": 1},
        {"data.packing": True},
        {"model.dtype": "bfloat16"},
        {"adapter.use_dora": True},
    ],
    ids=lambda changes: ",".join(f"{k.partition('.')[2]}={v}" for k, v in changes.items()) or "lora",
)
def test_the_peak_is_the_allocators(base: str, changes: dict[str, Any], bases: dict[str, str], tmp_path: Path) -> None:
    recipe, estimates = asked(tmp_path, bases[base], **changes)
    memory, _ = estimates.step(4)
    real = taken(recipe, estimates.longest(4))
    assert memory.total == pytest.approx(real, rel=0.05)


def test_what_forward_keeps_is_what_autograd_keeps(bases: dict[str, str], tmp_path: Path) -> None:
    """Another oracle: the bytes that autograd saves for backward, but parameters."""
    recipe, estimates = asked(tmp_path, bases["llama"])
    model = trained(recipe, load_model(recipe), 30).train()
    parameters, kept = {p.untyped_storage()._cdata for p in model.parameters()}, dict[int, Any]()

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(**padded(estimates.longest(4)))
    saved = sum(storage.nbytes() for storage in kept.values())
    memory, _ = estimates.step(4)
    assert memory.activations + memory.logits == pytest.approx(saved, rel=0.25)


def test_logits_are_counted_apart(bases: dict[str, str], tmp_path: Path) -> None:
    """12 bytes a logit: logits, log-probabilities, and a gradient, in float32."""
    _, estimates = asked(tmp_path, bases["llama"], **{"train.batch": 16})
    memory, _ = estimates.step(16)
    vocabulary = estimates.rehearsal.base.config.vocab_size
    assert memory.logits == pytest.approx(12 * 16 * max(estimates.lengths) * vocabulary, rel=0.01)


def test_parts_are_what_they_are_called(bases: dict[str, str], tmp_path: Path) -> None:
    recipe, estimates = asked(tmp_path, bases["llama"])
    memory, _ = estimates.step(4)
    base = load_model(recipe)
    own = sum(p.numel() for p in trained(recipe, base, 30).parameters() if p.requires_grad)
    held = sum(t.numel() * t.element_size() for t in (*base.parameters(), *base.buffers()))
    assert memory.weights == pytest.approx(held, rel=1e-3)
    assert memory.trained == pytest.approx(16 * own, rel=0.02)  # with gradient and Adam's two moments
    assert memory.to_dict()["total"] == memory.total == sum(memory.to_dict().values()) - memory.total


def test_flops_are_those_of_the_formula(bases: dict[str, str], tmp_path: Path) -> None:
    """Full: 6 a parameter and token (the embedding is looked up); a frozen base needs no gradients of its weights."""
    flops = {}
    for method in (FULL, "lora"):
        recipe, estimates = asked(tmp_path, bases["llama"], **{"adapter.method": method, "train.batch": 2})
        flops[method] = estimates.step(2)[1]
    base = load_model(recipe)
    products = sum(m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Linear))
    tokens = 2 * max(estimates.lengths)
    n = max(estimates.lengths)
    attention = base.config.num_hidden_layers * 4 * n * base.config.hidden_size * 3.5 * tokens
    assert flops[FULL] == pytest.approx(6 * products * tokens + attention, rel=0.03)
    own = estimates.parameters().trained
    lora = 4 * products * tokens + 6 * own * tokens + attention
    assert flops["lora"] == pytest.approx(lora, rel=0.05)


@pytest.mark.parametrize("method", [*methods(), FULL])
def test_every_method_is_counted(method: str, bases: dict[str, str], tmp_path: Path) -> None:
    fields = {f"adapter.{name}": value for name, value in SMALL.get(method, {}).items()}
    recipe, estimates = asked(tmp_path, bases["llama"], **{"adapter.method": method, **fields})
    if method in REFUSED:
        with pytest.raises(REFUSED[method]):
            estimates.step(4)
        return
    found = estimates.parameters()
    model = trained(recipe, load_model(recipe), estimates.steps)
    assert (found.trained, found.total) == count_parameters(model)
    model.save_pretrained(tmp_path / "saved")
    files = [p for p in (tmp_path / "saved").glob("*.safetensors") if "training" not in p.name]
    on_disk = sum(p.stat().st_size for p in files)
    assert found.saved < on_disk < found.saved + 20_000  # what a file has besides: names and shapes
    assert estimates.step(4)[0].total > estimates.step(2)[0].total


def test_a_rehearsal_leaves_nothing_behind(bases: dict[str, str], tmp_path: Path) -> None:
    """FourierFT keeps the places it has drawn: what is drawn without memory must not be among them."""
    recipe, estimates = asked(tmp_path, bases["llama"], **{"adapter.method": "fourierft", "adapter.n_frequency": 100})
    estimates.step(1)
    view = trained(recipe, load_model(recipe), 30)
    assert torch.isfinite(view(**estimates.longest(1)).loss)
    assert all(p.grad is None for p in estimates.rehearsal.model.parameters())


def test_a_quantised_base_takes_the_bytes_that_it_takes(bases: dict[str, str], tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    recipe, estimates = asked(tmp_path, bases["llama"], **{"model.quantize": "nf4"})
    model = trained(recipe, load_model(recipe), 30)
    held = 0
    for p in model._base.parameters():
        held += p.numel() * p.element_size()
        if isinstance(p, bitsandbytes.nn.Params4bit):
            state = p.quant_state
            inner = [state.state2.absmax, state.offset] if state.nested else []
            held += sum(t.numel() * t.element_size() for t in (state.absmax, *inner))
    assert estimates.step(1)[0].weights == pytest.approx(held, rel=0.02)


def test_batches_that_fit(bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, estimates = asked(tmp_path, bases["llama"], **{"train.batch": 2, "train.accumulation": 4})

    def room(free: float) -> Any:
        monkeypatch.setattr(module, "free_memory", lambda device: int(free / module.ROOM) + 1)
        return estimates.room()

    for batch in (2, 4, 8, 16):
        just = estimates.step(batch)[0].total
        assert room(just).largest == batch and room(just).fits
        assert room(just - 10).largest == batch // 2
    found = room(estimates.step(1)[0].total)
    assert not found.fits and found.change(recipe) == {"train.batch": 1, "train.accumulation": 8}
    assert room(10**12).largest == 16  # of 30 rows
    assert found.length == max(estimates.lengths) and found.to_dict()["memory"]["total"] == found.memory.total


def test_remedies_come_in_their_order(bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "one", "completion": "two " * 300}) + "\n")
    recipe, estimates = asked(tmp_path, bases["llama"], **{"data.train": str(long)})
    assert estimates.lengths == [96]

    def remedy(free: float) -> Any:
        monkeypatch.setattr(module, "free_memory", lambda device: int(free / module.ROOM))
        return estimates.room().remedy

    def of(**changes: Any) -> int:
        other = changed(recipe, {k.replace("__", "."): v for k, v in changes.items()})
        return Rehearsal(other, estimates.arguments, 30).step(estimates.longest(1))[0].total

    checkpointing = of(train__gradient_checkpointing=True)
    assert remedy(checkpointing + 1000) == {"train.gradient_checkpointing": True}
    both = of(train__gradient_checkpointing=True, model__quantize="nf4")
    assert both < checkpointing
    assert remedy(both + 1000) in (
        {"model.quantize": "nf4"},
        {"train.gradient_checkpointing": True, "model.quantize": "nf4"},
    )
    assert remedy(both - 100) == {"train.gradient_checkpointing": True, "model.quantize": "nf4", "data.max_length": 64}
    assert remedy(1000) is None and estimates.room().change(recipe) is None


def test_time_is_flops_at_a_share_of_the_rate(
    bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "product_rate", lambda device, dtype: 1e12)
    _, estimates = asked(tmp_path, bases["llama"], **{"train.epochs": 3, "train.accumulation": 2})
    found = estimates.duration()
    assert found.steps == 3 * math.ceil(math.ceil(30 / 4) / 2)
    assert found.tokens == 3 * found.epoch and sum(estimates.lengths) <= found.epoch <= 30 * max(estimates.lengths)
    assert found.flops == pytest.approx(estimates.step(4)[1] * found.tokens / (4 * max(estimates.lengths)))
    assert found.seconds == pytest.approx(found.flops / (0.4 * 1e12))
    assert found.assumed == "at 40% of the 1 TFLOP/s of a float32 matrix product on this CPU"
    bounded = asked(tmp_path, bases["llama"], **{"train.max_steps": 5})[1].duration()
    assert bounded.steps == 5 and bounded.tokens == pytest.approx(5 * 2 * 4 / 30 * bounded.epoch, rel=0.1)


def test_real_steps_can_be_timed(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **{"data.eval": 4})
    tokenizer = load_tokenizer(recipe)
    found = Estimates(recipe, prepare(recipe.data.train, tokenizer), tokenizer).measured()
    assert found.seconds > 0 and found.flops is None and found.assumed == "at the speed of 3 steps made now"
    assert not Path(recipe.out).exists()


def test_padding_is_that_of_batches_of_shuffled_rows() -> None:
    assert padded_tokens([3, 3, 3, 3], 2, seed=0) == 12
    assert padded_tokens([1, 5], 2, seed=0) == 10 and padded_tokens([1, 5], 1, seed=0) == 6


def test_the_machine() -> None:
    cpu = torch.device("cpu")
    assert 2**20 < free_memory(cpu) < 2**50
    assert product_rate(cpu, torch.float32, seconds=0.01) > 1e8


def test_optimizers(bases: dict[str, str], tmp_path: Path) -> None:
    sizes = {}
    for name in ("sgd", "adamw_torch", "adamw_torch_fused", "adafactor", "adamw_8bit"):
        _, estimates = asked(tmp_path, bases["llama"], **{"train.optimizer": name})
        sizes[name] = estimates.step(1)[0].trained / estimates.parameters().trained
    assert sizes["sgd"] == pytest.approx(8, abs=0.1) and sizes["adamw_torch"] == pytest.approx(16, abs=0.2)
    assert sizes["adamw_torch_fused"] == pytest.approx(16, abs=0.2)
    assert sizes["adamw_8bit"] == pytest.approx(10, abs=0.2)
    assert 8 < sizes["adafactor"] < 12
    with pytest.raises(ConfigError, match=r"train.optimizer='adam' is not allowed: .* Did you mean"):
        asked(tmp_path, bases["llama"], **{"train.optimizer": "adam"})[1].step(1)


def test_routed_experts_have_an_estimate_or_a_reason(tmp_path: Path) -> None:
    size = len(load_tokenizer(tiny.recipe(tmp_path)))
    config = MixtralConfig(
        **WIDE,
        vocab_size=size,
        intermediate_size=32,
        num_key_value_heads=2,
        num_local_experts=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    base = save(MixtralForCausalLM(config), tmp_path / "experts")
    recipe, estimates = asked(
        tmp_path, str(base), **{"adapter.target_modules": ["q_proj", "v_proj"], "model.dtype": "bfloat16"}
    )
    found = estimates.parameters()
    assert (found.trained, found.total) == count_parameters(trained(recipe, load_model(recipe), 30))
    memory = estimates.step(2)[0]
    assert memory.total == pytest.approx(taken(recipe, estimates.longest(2)), rel=0.25)


def test_the_largest_part_of_a_small_model_is_its_logits() -> None:
    assert Memory(1, 2, 3, 4).to_dict() == {"weights": 1, "trained": 2, "activations": 3, "logits": 4, "total": 10}
