"""Activated LoRA (`ALoraLinear`): where it acts, row by row, in every way of calling a model."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from inlay.core.active import Call
from inlay.errors import ConfigError, StateError, TargetError
from inlay.methods.lora import ALoraLinear, as_plain_lora
from inlay.methods.lora.invocation import last_occurrence, spans
from tests.tiny import close, llama, made, net, scramble

TOKENS = [7, 8]
# the first invokes twice, the second at its very end, the third has half of it at its end, the fourth all of it at once
IDS = torch.tensor(
    [
        [11, 7, 8, 12, 7, 7, 8, 13, 14, 15],
        [16, 17, 18, 19, 20, 21, 22, 23, 7, 8],
        [24, 25, 8, 7, 26, 27, 28, 29, 30, 7],
        [7, 8, 31, 32, 33, 34, 35, 36, 37, 38],
    ]
)
COUNTS = [5, 2, 0, 10]


class Words(nn.Module):
    """No model of transformers: ids in, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(40, 8), nn.Linear(8, 6), nn.Linear(6, 5, bias=False)

    def forward(self, words: Tensor, weights: Tensor | None = None) -> Tensor:
        h = self.embed(words)
        return self.down(torch.tanh(self.up(h if weights is None else h * weights)))  # type: ignore[no-any-return]


def config(**fields: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": "all-linear", **fields})


def alora(**fields: Any) -> LoraConfig:
    return config(alora_invocation_tokens=TOKENS, **fields)


def view_of(base: Any = None, name: str = "default", **fields: Any) -> Any:
    return scramble(get_peft_model(llama(dtype=torch.float64) if base is None else base, alora(**fields), name), 0.3)


def logits(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits  # type: ignore[no-any-return]


def generated(model: Any, ids: Tensor = IDS, **options: Any) -> Tensor:
    given = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    return model.generate(ids, **{**given, **options})  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the formula, and where it acts


def test_the_formula_row_by_row_and_position_by_position() -> None:
    view = view_of(made(Words, dtype=torch.float64), target_modules=["up", "down"])
    base, y = view.unload(), view(IDS)
    for row, count in enumerate(COUNTS):
        for position in range(10):
            h = base.embed(IDS[row, position])
            for name, bend in (("up", torch.tanh), ("down", lambda t: t)):
                layer, own = getattr(base, name), getattr(view, name).adapters["default"]
                assert type(own) is ALoraLinear
                w = layer.weight
                if position >= 10 - count:
                    w = w + 1.5 * own.B @ own.A
                h = bend(w @ h + (0 if layer.bias is None else layer.bias))
            close(y[row, position], h)
    assert torch.equal(view(IDS, torch.ones(())), y)


def test_the_last_occurrence() -> None:
    assert last_occurrence(IDS, TOKENS).tolist() == COUNTS
    assert last_occurrence(IDS, [15]).tolist() == [1, 0, 0, 0]
    assert last_occurrence(IDS[:, :1], TOKENS).tolist() == [0] * 4
    assert last_occurrence(IDS[:, :0], TOKENS).tolist() == [0] * 4
    overlapping = torch.tensor([[7, 7, 7, 1]])
    assert last_occurrence(overlapping, [7, 7]).tolist() == [3]


def test_before_the_invocation_all_is_as_in_the_base_bit_for_bit() -> None:
    base = llama()
    view = view_of(base)
    with torch.no_grad():
        mine, theirs = (m(IDS, output_hidden_states=True, use_cache=True) for m in (view, base))
    for row, count in enumerate(COUNTS):
        end = 10 - count
        for one, other in zip(mine.hidden_states, theirs.hidden_states, strict=True):
            assert torch.equal(one[row, :end], other[row, :end])
            assert count == 0 or one is mine.hidden_states[0] or not torch.equal(one[row, end:], other[row, end:])
        for one, other in zip(mine.past_key_values.layers, theirs.past_key_values.layers, strict=True):
            assert torch.equal(one.keys[row, :, :end], other.keys[row, :, :end])
            assert torch.equal(one.values[row, :, :end], other.values[row, :, :end])
            assert count == 0 or not torch.equal(one.values[row, :, end:], other.values[row, :, end:])


def test_where_all_is_invoked_it_is_lora() -> None:
    view = view_of()
    view.add_adapter("plain", config())
    for path, own in view._inlay.placed["default"].items():
        view._inlay.placed["plain"][path].load_state_dict(own.state_dict())
    mine = logits(view, IDS[3:])
    view.set_adapter("plain")
    close(mine, logits(view, IDS[3:]))


def test_a_fresh_adapter_changes_nothing_and_every_parameter_is_trained() -> None:
    base = llama()
    assert torch.equal(logits(get_peft_model(base, alora()), IDS), logits(base))
    view = view_of(lora_dropout=0.3).train()
    view(IDS, labels=IDS).loss.backward()
    for name, p in view.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == p.requires_grad == (".adapters." in name), name
    view.zero_grad()
    view(IDS[2:3], labels=IDS[2:3]).loss.backward()
    assert not any(p.grad.any() for p in view.parameters() if p.requires_grad), "without invocation nothing is learnt"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_16_bit_base(dtype: torch.dtype) -> None:
    view = view_of(llama(dtype=dtype))
    assert {p.dtype for p in view.parameters() if p.requires_grad} == {torch.float32}
    mine, base = logits(view), logits(view.unload())
    assert mine.dtype == dtype and torch.equal(mine[0, :5], base[0, :5]) and not torch.equal(mine[0, 5:], base[0, 5:])


def test_dropout_is_on_what_it_acts_on() -> None:
    view = view_of(lora_dropout=0.5).train()
    one, other = (logits(view) for _ in range(2))
    assert torch.equal(one[0, :5], other[0, :5]) and not torch.equal(one[0, 5:], other[0, 5:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    view, n = view_of(), 3
    given, mask = torch.zeros(4, 10 + n, dtype=torch.long), torch.zeros(4, 10 + n, dtype=torch.long)
    own = slice(n, None) if side == "left" else slice(10)
    given[:, own], mask[:, own] = IDS, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    close(logits(view, given, attention_mask=mask, position_ids=positions)[:, own], logits(view))


def test_virtual_tokens_before_do_not_move_it() -> None:
    view = view_of()
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    view.add_adapter("prompt", prompt)
    with view.disable_adapter():
        base = logits(view)
    view.set_adapter("prompt", inference_mode=True)
    prompted = logits(view)
    view.set_adapter(["prompt", "default"], inference_mode=True)
    both = logits(view)
    assert both.shape[1] == 13 and base.shape[1] == 10
    for row, count in enumerate(COUNTS):
        end = 13 - count
        assert torch.equal(both[row, :end], prompted[row, :end])
        assert count == 0 or ((both - prompted)[row, end:].abs().amax(-1) > 1e-6).all()
    assert torch.equal(generated(view, use_cache=True), generated(view, use_cache=False))


# ---------------------------------------------------------------- caches and generation


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_a_cache(beams: int) -> None:
    view = view_of()
    options = {
        "num_beams": beams,
        "num_return_sequences": beams,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with_cache, without = (generated(view, use_cache=used, **options) for used in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    for one, other in zip(with_cache.logits, without.logits, strict=True):
        close(one, other)
    assert torch.equal(with_cache.sequences[2 * beams], generated(view.unload(), IDS[2:3], num_beams=beams)[0])
    for row in range(4):
        alone = generated(view, IDS[row : row + 1], num_beams=beams, num_return_sequences=beams)
        assert torch.equal(alone, with_cache.sequences[beams * row : beams * (row + 1)])


def test_what_is_generated_follows_the_prompts_span() -> None:
    """By hand, from whole sequences: what is on stays on, and off stays off, where the invocation is generated."""
    view = view_of()
    forced = torch.tensor([12, 7, 8, 13, 14, 15])
    result = generated(
        view,
        prefix_allowed_tokens_fn=lambda _, ids: [int(forced[len(ids) - 10])],
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(result.sequences[:, 10:], forced.expand(4, -1))
    for step, found in enumerate(result.logits):
        offsets = [count and count + step for count in COUNTS]
        close(found, logits(view, result.sequences[:, : 10 + step], alora_offsets=offsets)[:, -1].float(), 1e-6, 1e-6)


def test_prompts_of_unequal_length_padded_on_the_left() -> None:
    view = view_of()
    padded = torch.cat([torch.zeros(4, 3, dtype=torch.long), IDS], 1)
    mask = (padded != 0).long()
    assert torch.equal(generated(view, padded, attention_mask=mask)[:, 13:], generated(view)[:, 10:])


def test_a_prompt_in_chunks_and_looked_up_candidates() -> None:
    view, ids = view_of(), IDS[:1]
    assert torch.equal(generated(view, prefill_chunk_size=3), generated(view))
    assert torch.equal(generated(view, ids, prompt_lookup_num_tokens=2), generated(view, ids))
    assert torch.equal(generated(view, ids, cache_implementation="static", disable_compile=True), generated(view, ids))


def test_a_cache_of_the_bases_is_gone_on_with() -> None:
    base = llama(dtype=torch.float64)
    view = view_of(base)
    ids = IDS[:2]
    with torch.no_grad():
        cache = base(ids[:, :5], use_cache=True).past_key_values
        rest = view(ids[:, 5:], past_key_values=copy.deepcopy(cache)).logits
    close(rest, logits(view, ids)[:, 5:])
    assert torch.equal(generated(view, ids, past_key_values=copy.deepcopy(cache)), generated(view, ids))


def test_going_on_by_hand_needs_the_offsets() -> None:
    view, whole = view_of(), torch.cat([IDS, IDS[:, :2]], 1)
    with torch.no_grad():
        cache = view(IDS, use_cache=True).past_key_values
        with pytest.raises(StateError, match=r"the 10 in the cache may have: call generate.*alora_offsets=\[...\]"):
            view(IDS[:, :2], past_key_values=copy.deepcopy(cache))
        offsets = [2, 2, 0, 2]
        rest = view(IDS[:, :2], past_key_values=copy.deepcopy(cache), alora_offsets=offsets).logits
        many = view(IDS[:, :2], past_key_values=copy.deepcopy(cache), alora_offsets=torch.tensor([9, 9, 0, 9])).logits
    expected = logits(view, whole, alora_offsets=[7, 4, None, 12])
    close(rest, expected[:, 10:])
    close(many, rest)
    embeds = view.get_input_embeddings()(whole)
    close(logits(view, None, inputs_embeds=embeds, alora_offsets=[7, 4, None, 12]), expected)
    found = generated(view, IDS[2:], alora_offsets=[3, 0])
    assert torch.equal(found[1], generated(view.unload(), IDS[3:])[0])
    assert not torch.equal(found[0], generated(view, IDS[2:3])[0])


def test_a_recurrent_model_has_no_cache_that_counts() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
    view = view_of(made(lambda: MambaForCausalLM(MambaConfig(**sizes))), target_modules=["x_proj"])
    before = logits(view.unload())
    assert torch.equal(logits(view)[1, :8], before[1, :8]) and not torch.equal(logits(view)[1, 8:], before[1, 8:])
    with pytest.raises(StateError, match="use_cache=False"):
        generated(view)
    assert generated(view, use_cache=False).shape == (4, 16)


# ---------------------------------------------------------------- mixed batches


def three() -> Any:
    """A view with two Activated LoRAs of different invocations, and a plain one."""
    view = view_of(name="one")
    view.add_adapter("two", config(alora_invocation_tokens=[14]))
    view.add_adapter("plain", config())
    for seed, name in enumerate(("two", "plain")):
        view.set_adapter(name)
        scramble(view, 0.3, seed=seed + 3)
    view.set_adapter("one")
    return view


def test_each_row_with_its_own_adapter() -> None:
    view, names = three(), ["two", "one", "plain", "__base__"]
    mixed, text = logits(view, adapter_names=names), generated(view, adapter_names=names)
    beams = generated(view, adapter_names=names, num_beams=2)
    for row, name in enumerate(names):
        own = IDS[row : row + 1]
        if name != "__base__":
            view.set_adapter(name)
        model = view.unload() if name == "__base__" else view
        close(mixed[row], logits(model, own)[0])
        assert torch.equal(text[row], generated(model, own)[0])
        assert torch.equal(beams[row], generated(model, own, num_beams=2)[0])


def test_rows_of_others_may_go_on_from_a_cache() -> None:
    view = three()
    with torch.no_grad():
        cache = view.unload()(IDS[:, :5], use_cache=True).past_key_values
        names = ["one", "one", "plain", "__base__"]
        rest = view(IDS[:, 5:], past_key_values=copy.deepcopy(cache), adapter_names=names).logits
        with pytest.raises(StateError, match="in the cache may have"):
            view(IDS[:, 5:], past_key_values=cache, adapter_names=["one", "one", "one", "plain"])
    close(rest[:2], logits(view, IDS[:2])[:, 5:])


def test_several_active_at_once() -> None:
    view = three()
    view.set_adapter(["one", "two"])
    mine, base = logits(view), logits(view.unload())
    view.set_adapter("one")
    alone = logits(view)
    assert torch.equal(mine[0, :5], base[0, :5]) and torch.equal(mine[0, 5:8], alone[0, 5:8])
    assert not torch.equal(mine[0, 8:], alone[0, 8:]) and torch.equal(mine[1:], alone[1:])


# ---------------------------------------------------------------- recomputation, compilation, copies, files


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")  # of `logits`
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_recomputed_in_backward_sees_what_its_forward_pass_saw(reentrant: bool) -> None:
    view = view_of().train()
    trained = [p for p in view.parameters() if p.requires_grad]
    batches = [IDS, IDS.flip(1), IDS.roll(2, 1)]
    expected = [torch.autograd.grad(view(ids, labels=ids).loss, trained) for ids in batches]
    assert not torch.equal(expected[0][0], expected[2][0])
    view.gradient_checkpointing_enable({"use_reentrant": reentrant})
    view.enable_input_require_grads()

    def gradients() -> list[Tensor]:
        found = [p.grad.clone() for p in trained]  # type: ignore[union-attr]
        view.zero_grad()
        return found

    losses = [view(ids, labels=ids).loss for ids in batches]
    logits(view, IDS[:2])
    for loss, grads in zip(losses, expected, strict=True):  # each after forward passes over other tokens
        loss.backward()
        for found, grad in zip(gradients(), grads, strict=True):
            close(found, grad)
    sum(view(ids, labels=ids).loss for ids in batches).backward()
    for found, *grads in zip(gradients(), *expected, strict=True):
        close(found, sum(grads))


def test_it_compiles_to_one_graph() -> None:
    view = view_of()
    torch._dynamo.reset()
    compiled = torch.compile(view, fullgraph=True, backend="eager")
    for ids in (IDS, IDS.flip(0)):
        close(compiled(ids, use_cache=False).logits, view(ids).logits)
    names = ["default", "__base__", "default", "default"]
    close(compiled(IDS, use_cache=False, adapter_names=names).logits, view(IDS, adapter_names=names).logits)
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_equal_and_independent(how: str) -> None:
    view = view_of()
    view(IDS, labels=IDS).loss.backward()
    y = logits(view)
    twin = copy.deepcopy(view) if how == "deepcopy" else pickle.loads(pickle.dumps(view))
    assert torch.equal(logits(twin), y)
    scramble(twin)
    assert torch.equal(logits(view), y) and not torch.equal(logits(twin), y)


def test_files(tmp_path: Path) -> None:
    view = view_of()
    view.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["alora_invocation_tokens"] == TOKENS
    again = PeftModel.from_pretrained(llama(dtype=torch.float64), tmp_path)
    assert torch.equal(logits(again), logits(view)) and again.peft_config["default"].alora_invocation_tokens == TOKENS
    get_peft_model(llama(), config()).save_pretrained(tmp_path / "plain")
    assert "alora_invocation_tokens" not in json.loads((tmp_path / "plain" / "adapter_config.json").read_text())


def test_switching_disabling_and_deleting() -> None:
    view = three()
    base, one = logits(view.unload()), logits(view)
    with view.disable_adapter():
        assert torch.equal(logits(view), base)
        assert torch.equal(logits(view, None, inputs_embeds=view.get_input_embeddings()(IDS)), base)
    view.set_adapter("plain")
    assert not torch.equal(logits(view), one)
    view.set_adapter("one")
    assert torch.equal(logits(view), one)
    view.delete_adapter("one")
    assert torch.equal(logits(view), base)


def test_the_same_without_an_anchor_is_invoked_alike() -> None:
    view = view_of()
    as_plain_lora(view, "default", "wide")
    before = logits(view)
    view.set_adapter("wide")
    close(logits(view), before)


# ---------------------------------------------------------------- what is refused


def test_it_cannot_be_merged() -> None:
    view = view_of()
    for merge in (view.merge_adapter, view.merge_and_unload):
        with pytest.raises(StateError, match=r"ALoraLinear at .* acts on some tokens only.*: it cannot be merged"):
            merge()
    own = next(iter(view._inlay.placed["default"].values()))
    with pytest.raises(NotImplementedError, match="for some tokens"):
        own.weight(torch.zeros(2, 2))


def test_what_has_no_tokens_to_look_in() -> None:
    plain = view_of(made(Words), target_modules=["up"])
    view, embeds = view_of(), llama(dtype=torch.float64).get_input_embeddings()(IDS)
    lost = r"give the model input_ids of shape \(batch, length\).*alora_offsets=\[...\]"
    for call in (
        lambda: plain(torch.randn(2, 3)),
        lambda: plain(words=IDS),
        lambda: plain(IDS[0]),
        lambda: view(inputs_embeds=embeds),
        lambda: view.generate(inputs_embeds=embeds, max_new_tokens=2),
    ):
        with pytest.raises(StateError, match=lost):
            call()
    for call in (lambda: view.model(IDS), lambda: view.get_base_model()(IDS), lambda: plain.up(torch.randn(2, 3, 8))):
        with pytest.raises(StateError, match=r"'default' is an Activated LoRA.* call the view"):
            call()
    changed = inject_adapter_in_model(alora(), llama())
    with pytest.raises(StateError, match="or a model that was changed in place"):
        changed(IDS)


@pytest.mark.parametrize("offsets", [[1, 2], torch.ones(4), [[1], [1], [1], [1]]], ids=str)
def test_offsets_that_do_not_fit(offsets: Any) -> None:
    with pytest.raises(StateError, match=r"alora_offsets has .* for a batch of 4 rows"):
        view_of()(IDS, alora_offsets=offsets)


def test_without_an_activated_lora_the_offsets_mean_nothing() -> None:
    view = scramble(get_peft_model(llama(), config()))
    assert torch.equal(logits(view, alora_offsets=[1, 1, 1, 1]), logits(view))


def test_layers_that_do_not_see_tokens() -> None:
    class Pooled(Words):
        def forward(self, words: Tensor) -> Tensor:  # type: ignore[override]
            return self.down(self.up(self.embed(words)).mean(1))  # type: ignore[no-any-return]

    view = view_of(made(Pooled), target_modules=["up", "down"])
    with pytest.raises(StateError, match=r"is given \(4, 6\) for a batch of 4 rows.*leave it out of target_modules"):
        view(IDS)


@pytest.mark.parametrize("name", ["embed", "conv1", "conv2", "conv3"])
def test_other_layers_than_linear_ones(name: str) -> None:
    with pytest.raises(TargetError, match=rf"{name!r} is a .*, which LORA cannot adapt \(it adapts: linear\)"):
        get_peft_model(net(), alora(target_modules=[name]))


def test_encoder_decoder_models() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 40, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ConfigError, match="None for an encoder-decoder model"):
        get_peft_model(T5ForConditionalGeneration(T5Config(**sizes)), alora())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not allowed: expected False with alora_invocation_tokens"),
        ({"lora_bias": True}, "lora_bias=True is not allowed: expected False with alora_invocation_tokens"),
        ({"bias": "all"}, "bias='all' is not allowed: expected 'none' with alora_invocation_tokens"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights='pissa' is not allowed: expected one that leaves the weight",
        ),
        (
            {"alora_invocation_tokens": []},
            r"alora_invocation_tokens=\[\] is not allowed: expected a list of at least one",
        ),
        ({"alora_invocation_tokens": 7}, "alora_invocation_tokens=7 is not allowed: expected a list"),
        ({"alora_invocation_tokens": [7, -1]}, "alora_invocation_tokens=-1 is not allowed: expected an integer"),
        ({"alora_invocation_tokens": [7, "8"]}, "alora_invocation_tokens='8' is not allowed: expected an integer"),
        ({"alora_invocation_tokens": "ab"}, "alora_invocation_tokens='ab' is not allowed"),
    ],
    ids=str,
)
def test_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        alora(**fields) if "alora_invocation_tokens" not in fields else config(**fields)


def test_spans_of_a_call() -> None:
    call = Call({"input_ids": IDS})
    found = spans(TOKENS, call)
    assert (found[:, 1] == 10).all() and found[[0, 1, 3], 0].tolist() == [5, 8, 0] and found[2, 0] > 1 << 40
    step = spans(TOKENS, Call({"input_ids": torch.cat([IDS, IDS], 1)}, before=found))
    assert torch.equal(step[:, 0], found[:, 0]) and (step[:, 1] == 20).all()
