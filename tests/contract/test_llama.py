"""The promises on a transformers model: several views on one base, and tied weights."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import LoraConfig, get_peft_model
from tests.contract.cases import Make, adapters_of, methods
from tests.tiny import VOCAB, close, ids, llama, same, scramble, snapshot

CONFIGS: list[dict[str, Any]] = [
    {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    {"r": 2, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": "all-linear", "use_rslora": True},
    {"r": 3, "target_modules": ["embed_tokens", "down_proj"], "modules_to_save": ["norm"]},
    {"r": 2, "target_modules": ["o_proj"], "trainable_token_indices": [3, 5], "layers_to_transform": [1]},
]


def test_four_views_trained_in_turn_are_what_each_is_alone_and_the_base_stays() -> None:
    """One base, four views with other configs and optimizers, in turn; bit for bit."""
    base = llama()
    start, logits = snapshot(base), base(ids()).logits

    def create(i: int, model: Any) -> tuple[Any, Any]:
        torch.manual_seed(i)
        view = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **CONFIGS[i])).train()
        return view, torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.01)

    def step(i: int, n: int, view: Any, optimizer: Any) -> float:
        torch.manual_seed(100 * i + n)
        x = (ids(4, 6) + n + i) % VOCAB
        loss = view(input_ids=x, labels=x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    alone = []
    for i in range(4):
        view, optimizer = create(i, llama())
        losses = [step(i, n, view, optimizer) for n in range(3)]
        alone.append((losses, snapshot(view.eval()), view(ids()).logits))
    views = [create(i, base) for i in range(4)]
    losses = [[], [], [], []]  # type: ignore[var-annotated]
    for n, i in itertools.product(range(3), range(4)):
        losses[i].append(step(i, n, *views[i]))
        assert same(snapshot(base), start)
        assert torch.equal(base(ids()).logits, logits)
    for i, (view, _) in enumerate(views):
        assert losses[i] == alone[i][0]
        assert same(snapshot(view.eval()), alone[i][1])
        assert torch.equal(view(ids()).logits, alone[i][2])
    shared = {p.data_ptr() for p in base.parameters()}
    assert all(shared <= {p.data_ptr() for p in view.parameters()} for view, _ in views)


def _weights(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


LINEAR = pytest.mark.parametrize(
    "make",
    [p for p in methods() if (adapter := adapters_of(p.values[0]).get("linear")) and adapter.mergeable],  # type: ignore[arg-type]
)


@LINEAR
def test_61_merging_into_a_tied_head_leaves_the_embedding(make: Make) -> None:
    base = llama(dtype=torch.float64, tie_word_embeddings=True)
    assert _weights(base)[0] is _weights(base)[1]
    before = snapshot(base)
    view = scramble(get_peft_model(base, make(target_modules=["lm_head"])))
    y = view(ids()).logits
    if not view.lm_head.adapters["default"].mergeable:
        pytest.skip("not mergeable")
    view.merge_adapter()
    assert _weights(view)[0] is _weights(base)[0] and _weights(view)[1] is not _weights(base)[1]
    close(view(ids()).logits, y)
    view.unmerge_adapter()
    assert _weights(view)[1] is _weights(view)[0]
    merged = view.merge_and_unload()
    embedding, head = _weights(merged)
    assert torch.equal(embedding, before["model.embed_tokens.weight"]) and not torch.equal(head, embedding)
    close(merged(ids()).logits, y)
    assert merged.config.tie_word_embeddings is False
    assert base.config.tie_word_embeddings is True and view.config.tie_word_embeddings is True
    assert same(snapshot(base), before)


def test_merging_equal_changes_into_tied_weights_keeps_them_tied() -> None:
    base = llama(dtype=torch.float64, tie_word_embeddings=True)
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 5]))
    view = scramble(view)
    assert {"model.embed_tokens", "lm_head"} <= set(view._inlay.hosts)
    y = view(ids()).logits
    merged = view.merge_and_unload()
    embedding, head = _weights(merged)
    assert embedding is head and embedding is not _weights(base)[0]
    assert merged.config.tie_word_embeddings is True
    close(merged(ids()).logits, y)


def test_a_merged_model_saves_and_loads_as_a_plain_one(tmp_path: Any) -> None:
    base = llama(tie_word_embeddings=True)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")))
    merged = view.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids()).logits, merged(ids()).logits)
    base.save_pretrained(tmp_path / "base")
    assert torch.equal(type(base).from_pretrained(tmp_path / "base").eval()(ids()).logits, base(ids()).logits)


def test_a_merged_model_takes_adapters_again() -> None:
    base = llama()
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["q_proj"])))
    merged = view.merge_and_unload()
    y = merged(ids()).logits
    second = get_peft_model(merged, LoraConfig(target_modules=["v_proj"]))
    assert torch.equal(second(ids()).logits, y)
    scramble(second)
    assert torch.equal(merged(ids()).logits, y) and not torch.equal(second(ids()).logits, y)


TARGETS = ["q_proj", "v_proj", "down_proj", "embed_tokens", "input_layernorm"]
EVERY = pytest.mark.parametrize("make", methods())


def language_view(make: Make, **kwargs: Any) -> Any:
    """A Llama with the method in every kind of its layers that the method can sit in."""
    base = llama(dtype=torch.float64)
    own = adapters_of(make)
    names = {"linear": TARGETS[:3], "embedding": TARGETS[3:4], "module": TARGETS[4:]}
    if "linear" not in own and "module" in own and make(target_modules=["fc"]).peft_type == "BITFIT":
        base = llama(dtype=torch.float64, attention_bias=True, mlp_bias=True)  # nothing else has a bias
        names["module"] = TARGETS[:3]
    targets = [name for kind, found in names.items() if kind in own for name in found]
    if "linear" in own:
        targets = [t for t in targets if t != "input_layernorm"]
    return scramble(get_peft_model(base, make(target_modules=targets), **kwargs))


@EVERY
def test_padding_its_side_and_the_other_rows_change_nothing(make: Make) -> None:
    view = language_view(make)
    lengths, width = (6, 4), 8
    alone = [view(ids(1, n) + 3 * i + 1).logits[0] for i, n in enumerate(lengths)]
    for side in ("left", "right"):
        x, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
        for i, n in enumerate(lengths):
            where = slice(width - n, width) if side == "left" else slice(0, n)
            x[i, where], mask[i, where] = ids(1, n)[0] + 3 * i + 1, 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        y = view(input_ids=x, attention_mask=mask, position_ids=positions).logits
        for i in range(2):
            close(y[i][mask[i].bool()], alone[i], 1e-5, 1e-5)


@EVERY
def test_generation_is_the_same_with_and_without_a_cache(make: Make) -> None:
    view = language_view(make)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    x = ids(2, 5) + 1
    made = view.generate(input_ids=x, attention_mask=torch.ones_like(x), **how)
    assert torch.equal(made, view.generate(input_ids=x, attention_mask=torch.ones_like(x), use_cache=False, **how))
    for i in range(2):
        assert torch.equal(made[i : i + 1], view.generate(input_ids=x[i : i + 1], **how))
