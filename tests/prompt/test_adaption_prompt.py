"""LLaMA-Adapter: the formula written out again for three architectures, and what holds for all it knows."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inlay import AdaptionPromptConfig, LoraConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, StateError, TargetError
from inlay.prompt.adaption_prompt import FAMILIES
from tests.tiny import close, net, older, same, snapshot

MAIN = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gpt2",
    "opt",
    "gpt_neox",
    "glm",
    "glm4",
    "phi",
    "stablelm",
]
each_main = pytest.mark.parametrize("kind", MAIN)
VOCAB = 61

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SPARSE = {**GROUPED, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {},
    "persimmon": {},
    "phi": {"num_key_value_heads": 2},
    "stablelm": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gptj": {"rotary_dim": 4, "n_inner": 48},
    "mixtral": {**GROUPED, **EXPERTS},
    "qwen2_moe": SPARSE,
    "qwen3_moe": SPARSE,
}


@functools.cache
def built(kind: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = CONFIG_MAPPING[kind](**{**SIZES, **OWN.get(kind, GROUPED), **dict(fields)})
    model = AutoModelForCausalLM.from_config(config)
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(std=0.15, generator=made)
            elif name.endswith("bias"):  # where a bias that is added twice would not show at 0
                p.normal_(std=0.1, generator=made)
    return model.eval()


def model_of(kind: str, **fields: Any) -> Any:
    """A tiny model of a type, with weights of order one."""
    return copy.deepcopy(built(kind, tuple(fields.items())))


def config_of(**fields: Any) -> AdaptionPromptConfig:
    return AdaptionPromptConfig(**{"adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM", **fields})


def fresh(base: Any, **fields: Any) -> Any:
    torch.manual_seed(2)
    return get_peft_model(base, config_of(**fields)).eval()


def view_of(base: Any, **fields: Any) -> Any:
    """A view whose gates are open."""
    view = fresh(base, **fields)
    made = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for adapter in placed(view):
            adapter.adaption_gate.normal_(generator=made)
    return view


def placed(view: Any) -> list[Any]:
    return list(view._inlay.placed["default"].values())


def text(rows: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, **kwargs).logits
    return found


# ---------------------------------------------------------------------- the formula, architecture by architecture


def calls_of(view: Any, base: Any, path: str, ids: Tensor) -> tuple[Tensor, dict[str, Any], Tensor]:
    """(x, the arguments, what the adapter adds to the attention at `path` for `ids`)."""
    seen: list[Any] = []

    def see(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append((args, kwargs, output[0]))

    hook = view.get_submodule(path).register_forward_hook(see, with_kwargs=True)
    with torch.no_grad():
        view(ids, use_cache=False)
        hook.remove()
        ((args, kwargs, y),) = seen
        plain = base.get_submodule(path)(*args, **kwargs)[0]
    return (args[0] if args else kwargs["hidden_states"]), kwargs, y - plain


def softmax(scores: Tensor) -> Tensor:
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (batch, heads, n, d), k, v: (heads, len, d) -> per head (batch, n, heads, d), written as loops."""
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, :, h] = softmax(q[b, h] @ k[h].T / q.shape[3] ** 0.5) @ v[h]
    return out


def turned(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """q: (batch, heads, n, d) at its rotary position; cos, sin: (1 or batch, n, d)."""
    half = q.shape[-1] // 2
    return q * cos[:, None] + torch.cat([-q[..., half:], q[..., :half]], -1) * sin[:, None]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def llama_term(host: Any, adapter: Any, x: Tensor, given: dict[str, Any], d: int, gate: Tensor) -> Tensor:
    """W_o (gate softmax(q K^T / sqrt(d)) V) for Llama's attention and Qwen3's; gate: (heads,)."""
    prompt = adapter.adaption_prompt[0]

    def projected(name: str, tokens: Tensor) -> Tensor:
        layer = getattr(host, name)
        bias = 0 if layer.bias is None else layer.bias
        return (tokens @ layer.weight.T + bias).unflatten(-1, (-1, d)).transpose(-3, -2)

    q, k, v = projected("q_proj", x), projected("k_proj", prompt), projected("v_proj", prompt)
    if hasattr(host, "q_norm"):
        q, k = (rms(t, n.weight, n.variance_epsilon) for t, n in ((q, host.q_norm), (k, host.k_norm)))
    q = turned(q, *given["position_embeddings"])
    groups = q.shape[1] // k.shape[0]
    z = attend(q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0))
    return (gate[:, None] * z).flatten(-2) @ host.o_proj.weight.T  # without o_proj's bias


@pytest.mark.parametrize(("kind", "bias", "tolerance"), [("llama", True, 1e-12), ("qwen3", False, 1e-6)])
@pytest.mark.parametrize("gate", [None, "tanh_per_head"])
def test_the_formula_on_llama_and_qwen3(kind: str, bias: bool, tolerance: float, gate: str | None) -> None:
    """Qwen3's norms compute in float32, whatever comes in."""
    base = model_of(kind, attention_bias=bias).double()
    view = view_of(base, gate=gate)
    for i in (0, 1):
        path = f"model.layers.{i}.self_attn"
        host, adapter = view.get_submodule(path), view._inlay.placed["default"][path]
        x, given, added = calls_of(view, base, path, text())
        g = adapter.adaption_gate
        heads = g.expand(4) if gate is None else g.tanh()
        want = llama_term(host, adapter, x, given, 8, heads)
        assert want.abs().max() > 0.1
        close(added, want.detach(), tolerance, tolerance)
        wrong = want + (host.o_proj.bias if bias else 0.01)
        assert (added - wrong).abs().max() > 1e-3, "the test would notice a bias added twice"


def test_the_formula_on_gpt2() -> None:
    base = model_of("gpt2").double()
    view = view_of(base)
    for i in (0, 1):
        path = f"transformer.h.{i}.attn"
        host, adapter = view.get_submodule(path), view._inlay.placed["default"][path]
        x, _, added = calls_of(view, base, path, text())
        w, b, prompt = host.c_attn.weight, host.c_attn.bias, adapter.adaption_prompt[0]
        q = (x @ w[:, :32] + b[:32]).unflatten(-1, (4, 8)).transpose(1, 2)
        k = (prompt @ w[:, 32:64] + b[32:64]).unflatten(-1, (4, 8)).transpose(0, 1)
        v = (prompt @ w[:, 64:] + b[64:]).unflatten(-1, (4, 8)).transpose(0, 1)
        want = adapter.adaption_gate * attend(q, k, v).flatten(-2)  # no output projection, as in peft
        assert want.abs().max() > 0.1
        close(added, want.detach(), 1e-12, 1e-12)


# ---------------------------------------------------------------------- every architecture it knows


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family(kind: str) -> None:
    """A new adapter is the identity bit for bit; an open one adds something that does not depend on the order of the
    prompt's tokens, as it would if they had rotary positions or a causal mask; eager and sdpa agree."""
    found = []
    for attention in ("eager", "sdpa"):
        base = model_of(kind)
        try:
            base.set_attn_implementation(attention)
        except ValueError:  # gemma2 has no sdpa
            continue
        before = logits(base, text())
        assert torch.equal(logits(fresh(base), text()), before)
        view = view_of(base)
        assert len(placed(view)) == 2
        found.append(logits(view, text()))
        assert (found[-1] - before).abs().max() > 0.05
        with torch.no_grad():
            for adapter in placed(view):
                adapter.adaption_prompt.copy_(adapter.adaption_prompt[:, [2, 0, 3, 1]])
        close(logits(view, text()), found[-1], 0, 1e-5)
    close(found[0], found[-1], 0, 1e-5)


@each_main
def test_generating_with_and_without_cache(kind: str) -> None:
    view = view_of(model_of(kind))
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached, whole = (view.generate(text(), use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    for one, other in zip(cached.logits, whole.logits, strict=True):
        close(one, other, 0, 1e-5)


@each_main
def test_padding_on_either_side(kind: str) -> None:
    view, ids = view_of(model_of(kind)), text(1)
    alone = logits(view, ids)
    for left, right in ((3, 0), (0, 3)):
        mask = F.pad(torch.ones_like(ids), (left, right))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = logits(view, F.pad(ids, (left, right)), attention_mask=mask, position_ids=positions)
        close(padded[:, left : left + 7], alone, 0, 1e-5)


def gradients(view: Any) -> list[Tensor]:
    torch.manual_seed(0)
    view.zero_grad()
    view(text(), labels=text(), use_cache=False).loss.backward()
    return [p.grad.clone() for adapter in placed(view) for p in adapter.parameters()]


@each_main
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing.*` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_gradient_checkpointing(kind: str, reentrant: bool) -> None:
    """In training, dropout and all: the recomputation draws the same."""
    view = view_of(model_of(kind)).train()
    plain = gradients(view)
    assert all(g.abs().max() > 0 for g in plain)
    view.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert view.is_gradient_checkpointing
    for one, other in zip(gradients(view), plain, strict=True):
        close(one, other, 0, 1e-6)


@each_main
def test_a_16_bit_base(kind: str) -> None:
    base = model_of(kind)
    want = logits(view_of(base), text())
    view = view_of(model_of(kind).bfloat16())
    assert {p.dtype for a in placed(view) for p in a.parameters()} == {torch.float32}
    found = logits(view, text())
    assert found.dtype is torch.bfloat16
    assert (found.float() - want).abs().max() < 0.15 * want.abs().max()
    half = model_of(kind).bfloat16()
    assert torch.equal(logits(fresh(half), text()), logits(half, text()))


@each_main
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    base = model_of(kind)
    before = snapshot(base)
    view = view_of(base)
    view.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(model_of(kind), str(tmp_path)).eval()
    assert torch.equal(logits(again, text()), logits(view, text()))
    assert same(snapshot(base), before) and view.unload() is base
    data = json.loads((tmp_path / "adapter_config.json").read_text())
    assert data["target_modules"] == FAMILIES[kind].attention and "gate" not in data
    with view.disable_adapter():
        assert torch.equal(logits(view, text()), logits(base, text()))


# ---------------------------------------------------------------------- what is made


def test_what_is_made_and_trained() -> None:
    view = fresh(model_of("llama"), adapter_len=200, adapter_layers=1)
    assert list(view._inlay.placed["default"]) == ["model.layers.1.self_attn"], "the top layer"
    (adapter,) = placed(view)
    assert adapter.adaption_prompt.shape == (1, 200, 32) and adapter.adaption_gate.tolist() == [0.0]
    assert abs(adapter.adaption_prompt.mean()) < 0.05 and abs(adapter.adaption_prompt.std() - 1) < 0.05
    assert view.get_nb_trainable_parameters()[0] == 200 * 32 + 1
    view(text(), labels=text()).loss.backward()
    assert adapter.adaption_gate.grad.abs() > 0 and not adapter.adaption_prompt.grad.any(), "the gate opens first"
    config = view.peft_config["default"]
    assert config.is_adaption_prompt and not config.is_prompt_learning and config.peft_type == "ADAPTION_PROMPT"
    with pytest.raises(StateError, match="cannot be merged"):
        view.merge_adapter()


def test_the_gate_per_head(tmp_path: Path) -> None:
    view = view_of(model_of("llama"), gate="tanh_per_head")
    assert {tuple(a.adaption_gate.shape) for a in placed(view)} == {(4,)}
    base = model_of("llama")
    assert torch.equal(logits(fresh(base, gate="tanh_per_head"), text()), logits(base, text()))
    view.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["gate"] == "tanh_per_head"
    again = PeftModel.from_pretrained(model_of("llama"), str(tmp_path)).eval()
    assert torch.equal(logits(again, text()), logits(view, text()))


def test_a_text_model_inside_another() -> None:
    """Which attention it is, each module says itself: here the model around it is of no known type."""
    base = model_of("llama")
    base.config.model_type = "llava"
    with pytest.raises(TargetError, match="Models of type 'llava' have no attention"):
        get_peft_model(base, config_of())
    base.model.config = copy.deepcopy(base.model.layers[0].self_attn.config)
    base.model.config.model_type = "llama"
    for layer in base.model.layers:
        layer.self_attn.config = base.model.config
    view = view_of(base, target_modules="self_attn")
    assert not torch.equal(logits(view, text()), logits(base, text()))


# ---------------------------------------------------------------------- with other things


def test_training_lowers_the_loss() -> None:
    view = fresh(model_of("llama"))
    view.train()
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=3e-2)
    found = []
    for _ in range(15):
        loss = view(text(), labels=text()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_prompts_part_is_not_dropped_out(kind: str) -> None:
    fields = {"attention_dropout": 0.5} if kind == "llama" else {"attn_pdrop": 0.5, "resid_pdrop": 0.5}
    base = model_of(kind, **fields)
    view = view_of(base, adapter_layers=1)
    (path,) = view._inlay.placed["default"]
    x = torch.randn(2, 5, 32)
    n = torch.arange(5.0)[None, :, None].expand(1, 5, 8)
    given = {"position_embeddings": (n.cos(), n.sin())} if kind == "llama" else {}

    def term() -> Tensor:
        found = []
        for model in (view, base):
            torch.manual_seed(0)
            found.append(model.get_submodule(path)(hidden_states=x, attention_mask=None, **given)[0])
        return (found[0] - found[1]).detach()

    still = term()
    view.train()
    base.train()
    close(term(), still, 0, 1e-5)
    assert still.abs().max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_with_lora_inside_the_attention(kind: str) -> None:
    """Together they are the adaption prompt on the base that LoRA makes."""
    names = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "v_proj", FAMILIES[kind].out]
    lora = LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    view = view_of(model_of(kind))
    torch.manual_seed(4)
    view.add_adapter("lora", lora)
    view.set_adapter(["default", "lora"])
    merged = get_peft_model(model_of(kind), lora)
    for path, adapter in merged._inlay.placed["default"].items():
        adapter.load_state_dict(view._inlay.placed["lora"][path].state_dict())
    plain = view_of(merged.merge_and_unload())
    close(logits(view, text()), logits(plain, text()), 0, 1e-5)
    alone = logits(view, text(), adapter_names=["default"] * 2)
    view.set_adapter("default")
    assert torch.equal(alone, logits(view, text()))
    assert (alone - logits(plain, text())).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_mixed_batches(kind: str) -> None:
    """Its own rows cannot be mixed with others'; other adapters' rows can, in a view that has one."""
    base = model_of(kind)
    view = view_of(base)
    assert torch.equal(logits(view, text(), adapter_names=["default"] * 2), logits(view, text()))
    assert torch.equal(logits(view, text(), adapter_names=["__base__"] * 2), logits(base, text()))
    with pytest.raises(StateError, match="run one batch per adapter"):
        view(text(), adapter_names=["default", "__base__"])
    for name in ("a", "b"):
        names = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj", FAMILIES[kind].out]
        view.add_adapter(name, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    mixed = view.generate(text(), adapter_names=["b", "a"], max_new_tokens=4, do_sample=False)
    for i, name in enumerate("ba"):
        view.set_adapter(name)
        assert torch.equal(mixed[i], view.generate(text(), max_new_tokens=4, do_sample=False)[i])
    view.set_adapter("default")
    assert torch.equal(logits(view, text(), adapter_names=["default"] * 2), logits(view, text()))


def test_one_at_a_time() -> None:
    view = view_of(model_of("llama"))
    want = logits(view, text())
    view.add_adapter("b", config_of(adapter_len=2))
    with pytest.raises(StateError, match="Adapters 'default' and 'b' cannot be active together"):
        view.set_adapter(["default", "b"])
    view.set_adapter("b")
    assert torch.equal(logits(view, text()), logits(view.unload(), text()))
    view.set_adapter("default")
    assert torch.equal(logits(view, text()), want)


def test_copies() -> None:
    view = view_of(model_of("gpt_neox"))
    want = logits(view, text())
    for again in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert torch.equal(logits(again, text()), want)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_compiled(kind: str) -> None:
    view = view_of(model_of(kind))
    view.config.use_cache = False
    whole = not older("torch", "2.12")  # before, a stand-in cannot be made in a graph, which breaks there
    compiled = torch.compile(view, fullgraph=whole, backend="aot_eager")
    close(logits(compiled, text()), logits(view, text()), 0, 1e-6)


def test_under_autocast() -> None:
    view = view_of(model_of("llama"))
    want = logits(view, text())
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(view, text())
    assert 0 < (found.float() - want).abs().max() < 0.1 * want.abs().max()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter_len": 0}, "adapter_len=0 is not allowed: expected an integer of at least 1"),
        ({"adapter_layers": -1}, "adapter_layers=-1 is not allowed: expected an integer of at least 1"),
        ({"adapter_len": True}, "adapter_len=True is not allowed"),
        ({"target_modules": ["self_attn"]}, "expected one name of an attention module, or None"),
        ({"gate": "tanh"}, "gate='tanh' is not allowed: expected one of None, 'tanh_per_head'. Did you mean"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(**fields)
    assert message in str(caught.value)


def misfits() -> Iterator[Any]:
    from transformers import BloomConfig, BloomForCausalLM

    yield "bloom", BloomForCausalLM(BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2))
    yield None, net()


def test_models_it_does_not_know() -> None:
    for kind, base in misfits():
        with pytest.raises(TargetError, match=f"Models of type {kind!r} have no attention that ADAPTION_PROMPT") as e:
            get_peft_model(base, config_of(task_type=None))
        assert "gpt2, gpt_neox, gptj, granite" in str(e.value) and "or another method" in str(e.value)
        assert all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter_layers": 3}, "adapter_layers=3 is not allowed: expected at most 2, the model's layers"),
        ({"adapter_layers": None}, "adapter_layers=None is not allowed: expected an integer of at least 1"),
        ({"adapter_len": None}, "adapter_len=None is not allowed: expected an integer of at least 1"),
        ({"target_modules": "self_atn"}, "expected the name of an attention module. Did you mean 'self_attn'"),
        ({"target_modules": "mlp"}, "'model.layers.0.mlp' is a LlamaMLP, which is no attention that ADAPTION_PROMPT"),
        ({"target_modules": "q_proj"}, "'model.layers.0.self_attn.q_proj' is a Linear, which is no attention"),
    ],
)
def test_configs_that_do_not_fit_the_model(fields: dict[str, Any], message: str) -> None:
    base = model_of("llama")
    with pytest.raises(ConfigError) as caught:
        get_peft_model(base, config_of(**fields))
    assert message in str(caught.value)
    assert all(p.requires_grad for p in base.parameters())


def test_gpt2s_mlp_is_no_attention_though_it_has_a_c_proj() -> None:
    with pytest.raises(TargetError, match=r"'transformer\.h\.0\.mlp' is a GPT2MLP, which is no attention"):
        get_peft_model(model_of("gpt2"), config_of(target_modules="mlp"))
