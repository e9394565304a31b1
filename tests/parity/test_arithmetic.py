"""`add_weighted_adapter` beside peft's: every combination type, from the same files; and where peft is wrong.

In float64, so that what is compared is not peft's rounding in an svd. (It rounds the weights to float32 all the same.)
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.core.host import canonical
from inlay.merge.lowrank_sum import TYPES

from . import DEPRECATED
from .both import agree, differ, into_peft, output, peft, spread
from .models import FAMILIES, convs

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape"),  # peft, of its own lora_B.bias
]

EQUAL = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")  # these need equal ranks
ARGUMENTS: dict[str, Any] = {"density": 0.6, "majority_sign_method": "total"}
SEED = 11
NAMES = ["one", "two", "three"]
TARGETS = {
    "llama": ["q_proj", "down_proj", "embed_tokens"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "word_embeddings", "dense"],
}


def pair(base: Any, configs: Sequence[dict[str, Any]], folder: Path, library: Any = peft) -> tuple[Any, Any]:
    """A peft model and a view with the same adapters "one", "two", ..., made and saved by `library`."""
    names = NAMES[: len(configs)]
    for i, (name, config) in enumerate(zip(names, configs, strict=True)):
        torch.manual_seed(i)
        method = getattr(library, config.get("method", "LoraConfig"))
        fields = {k: v for k, v in config.items() if k != "method"}
        model = library.get_peft_model(copy.deepcopy(base), method(**copy.deepcopy(fields)), name)
        spread(model, seed=i, std=0.2)
        model.save_pretrained(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder / "one"), "one").eval()
        mine = inlay.PeftModel.from_pretrained(base, str(folder / "one"), "one").eval()
        for name in names[1:]:
            theirs.load_adapter(str(folder / name), name)
            mine.load_adapter(str(folder / name), name)
    return mine, theirs


def combine(mine: Any, theirs: Any, names: list[str], weights: list[float], **how: Any) -> None:
    """The adapter "sum" in both. What is left out at random is drawn from SEED on."""
    inject = theirs.base_model.inject_adapter

    def then_seeded(*args: Any, **kwargs: Any) -> None:  # the new adapter is initialised first, in float32 in peft
        inject(*args, **kwargs)
        torch.manual_seed(SEED)

    theirs.base_model.inject_adapter = then_seeded
    theirs.base_model.add_weighted_adapter(names, weights, "sum", **how)
    generator = torch.Generator().manual_seed(SEED)
    mine.base_model.add_weighted_adapter(names, weights, "sum", **how, generator=generator)


def changes(view: Any, name: str) -> dict[str, torch.Tensor]:
    """Path -> the change of the weight, as the host stores it."""
    hosts = view._inlay.hosts
    with torch.no_grad():
        return {
            path: canonical(hosts[path], a.weight(torch.zeros_like(canonical(hosts[path], hosts[path].weight))))
            for path, a in view._inlay.placed[name].items()
        }


def same_changes(mine: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    """The adapter "sum" changes every weight by the same in both, to `tolerance` relative to the largest entry."""
    found = changes(mine, "sum")
    layers = {n: m for n, m in theirs.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    assert set(found) == {n for n, m in layers.items() if "sum" in (*m.lora_A, *m.lora_embedding_A)}
    for path, change in found.items():
        with torch.no_grad():
            expected = layers[path].get_delta_weight("sum")
        agree(change, expected, path, tolerance * max(1.0, float(expected.abs().max())))
        differ(change, torch.zeros_like(change), 1e-3)


def same_outputs(mine: Any, theirs: Any, batch: Any, tolerance: float = 1e-5) -> None:
    for model in (mine, theirs):
        model.set_adapter("sum")
        model.eval()
    agree(output(mine, batch), output(theirs, batch), "logits", tolerance)


@pytest.mark.parametrize("weights", [[0.7, 0.4], [1.2, -0.5]], ids=str)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", TARGETS)
def test_adapters_of_equal_ranks(name: str, kind: str, weights: list[float], tmp_path: Path) -> None:
    family = FAMILIES[name]
    base = family.base().double()
    config = family.config(target_modules=TARGETS[name])
    mine, theirs = pair(base, [config, {**config, "lora_alpha": 5}], tmp_path)
    combine(mine, theirs, NAMES[:2], weights, combination_type=kind, **ARGUMENTS)
    same_changes(mine, theirs)
    same_outputs(mine, theirs, family.batch(0))
    # and what it is goes through the files, to both libraries
    expected = output(mine, family.batch(0))
    mine.save_pretrained(str(tmp_path / "saved"), selected_adapters=["sum"])
    agree(output(into_peft(base, tmp_path / "saved" / "sum"), family.batch(0)), expected, "in peft")
    again = inlay.PeftModel.from_pretrained(base, str(tmp_path / "saved" / "sum")).eval()
    agree(output(again, family.batch(0)), expected, "loaded")
    agree(output(again.merge_and_unload(), family.batch(0)), expected, "merged")


@pytest.mark.parametrize("kind", [k for k in TYPES if k not in EQUAL])
@pytest.mark.parametrize("name", TARGETS)
def test_adapters_of_different_ranks_and_targets(name: str, kind: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    base, targets = family.base().double(), TARGETS[name]
    one = family.config(target_modules=targets, r=2, lora_alpha=3)
    configs = [one, {**one, "r": 5, "use_rslora": True}, {**one, "target_modules": targets[:1], "r": 3}]
    mine, theirs = pair(base, configs, tmp_path)
    combine(mine, theirs, NAMES, [0.9, -0.4, 0.5], combination_type=kind, **ARGUMENTS)
    same_changes(mine, theirs)
    same_outputs(mine, theirs, family.batch(0))
    mine.save_pretrained(str(tmp_path / "saved"), selected_adapters=["sum"])
    again = into_peft(base, tmp_path / "saved" / "sum")  # its layers have different ranks, which the config says
    agree(output(again, family.batch(0)), output(mine, family.batch(0)), "in peft")


@pytest.mark.parametrize("weight", [0.5, -1.5, 0.0])
def test_a_multiple_of_one_adapter(weight: float, tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    base = family.base()
    mine, theirs = pair(base, [family.config(target_modules=["c_attn", "c_proj"])], tmp_path)
    combine(mine, theirs, ["one"], [weight])
    same_outputs(mine, theirs, family.batch(0))
    mine.save_pretrained(str(tmp_path / "saved"), selected_adapters=["sum"])
    agree(output(into_peft(base, tmp_path / "saved" / "sum"), family.batch(0)), output(mine, family.batch(0)))


def test_shifts_of_biases_in_peft(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    base = family.base()
    config = family.config(target_modules=["query"], lora_bias=True)
    mine, _ = pair(base, [config, {**config, "r": 2}], tmp_path)
    mine.add_weighted_adapter(NAMES[:2], [0.7, -0.4], "sum", "cat")
    mine.set_adapter("sum")
    mine.save_pretrained(str(tmp_path / "saved"), selected_adapters=["sum"])
    agree(output(into_peft(base, tmp_path / "saved" / "sum"), family.batch(0)), output(mine, family.batch(0)))


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("ties", {"majority_sign_method": "frequency", "density": 0.3}),
        ("dare_ties", {"majority_sign_method": "frequency", "density": 0.5}),
        ("ties_svd", {"majority_sign_method": "frequency", "density": 0.3, "svd_rank": 2}),
        ("ties", {"density": 1.0}),
        ("dare_linear", {"density": 1.0}),
        ("magnitude_prune", {"density": 0.0}),
        ("svd", {"svd_rank": 2}),
        ("svd", {"svd_rank": 3, "svd_clamp": 0.9}),
        ("dare_ties_svd", {"svd_rank": 3, "svd_clamp": 0.95, "svd_full_matrices": False, "density": 0.7}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater than or equal to 1:UserWarning")
def test_their_arguments(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    config = family.config(target_modules=["q_proj", "down_proj"])
    three = [config, {**config, "lora_alpha": 5}, {**config, "lora_alpha": 3}]
    mine, theirs = pair(family.base().double(), three, tmp_path)
    combine(mine, theirs, NAMES, [0.7, -0.4, 1.0], combination_type=kind, **how)
    if how.get("density") != 0:
        same_changes(mine, theirs)
    same_outputs(mine, theirs, family.batch(0))


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.startswith("dare")])
@pytest.mark.parametrize("name", TARGETS)
def test_one_seed_gives_one_adapter(name: str, kind: str, tmp_path: Path) -> None:
    """In float32, where both libraries draw the same numbers to initialise the new adapter, which they do first."""
    family = FAMILIES[name]
    config = family.config(target_modules=TARGETS[name])
    mine, theirs = pair(family.base(), [config, {**config, "lora_alpha": 5}], tmp_path)
    for model in (mine, theirs):
        torch.manual_seed(SEED)
        model.base_model.add_weighted_adapter(NAMES[:2], [0.7, -0.4], "sum", combination_type=kind, **ARGUMENTS)
    same_changes(mine, theirs, 1e-5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [{"kernel_size": 3, "padding": 1}, {"kernel_size": (1, 2)}], ids=str)
def test_convolutions(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    model, x = convs(2, **shape)
    model, x = model.double(), x.double()
    config = {"target_modules": ["conv", "point"], "r": 3, "lora_alpha": 8, "init_lora_weights": False}
    mine, theirs = pair(model, [config, {**config, "lora_alpha": 5}], tmp_path)
    combine(mine, theirs, NAMES[:2], [0.7, -0.4], combination_type=kind, **ARGUMENTS)
    same_changes(mine, theirs)
    same_outputs(mine, theirs, x)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1.5, -0.5], [0.3]], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ia3(name: str, weights: list[float], tmp_path: Path) -> None:
    family = FAMILIES[name]
    base = family.base()
    config = {"method": "IA3Config", "task_type": "CAUSAL_LM", "fan_in_fan_out": family.transposed}
    mine, theirs = pair(base, [config] * len(weights), tmp_path)
    combine(mine, theirs, NAMES[: len(weights)], weights)
    same_outputs(mine, theirs, family.batch(0), 1e-6)
    expected = output(mine, family.batch(0))
    mine.save_pretrained(str(tmp_path / "saved"), selected_adapters=["sum"])
    agree(output(into_peft(base, tmp_path / "saved" / "sum"), family.batch(0)), expected, "in peft")


# ------------------------------------------------------------------ where peft is wrong


def test_a_layer_without_an_ia3_scale_counts_as_one(tmp_path: Path) -> None:
    """peft leaves the adapter out there: at weights of 0.5 and 0.5 the layer's output is halved."""
    family = FAMILIES["llama"]
    one = {"method": "IA3Config", "target_modules": ["q_proj", "v_proj"], "feedforward_modules": []}
    mine, theirs = pair(family.base(), [one, {**one, "target_modules": ["q_proj"]}], tmp_path)
    combine(mine, theirs, NAMES[:2], [0.5, 0.5])
    path = "model.layers.0.self_attn.v_proj"
    scale, found = (mine._inlay.placed[name][path].l for name in ("one", "sum"))
    agree(found, 0.5 * scale + 0.5)
    agree(theirs.base_model.model.get_submodule(path).ia3_l["sum"], 0.5 * scale)


@pytest.mark.parametrize(
    ("fields", "by"),
    [
        ({"use_rslora": True}, 1e-2),
        ({"lora_bias": True}, 1e-3),
        ({"use_dora": True}, 1e-3),
        ({"modules_to_save": ["lm_head"]}, 1e-2),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}, 0),
    ],
    ids=str,
)
def test_one_adapter_at_weight_one(fields: dict[str, Any], by: float, tmp_path: Path) -> None:
    """peft's differs by more than `by`; ours does not differ."""
    family = FAMILIES["bert" if "lora_bias" in fields else "llama"]
    targets = ["query", "key"] if "lora_bias" in fields else ["q_proj", "k_proj"]
    mine, theirs = pair(family.base(), [family.config(target_modules=targets, **fields)], tmp_path)
    expected = output(mine, family.batch(0))
    combine(mine, theirs, ["one"], [1.0])
    mine.set_adapter("sum")
    theirs.set_adapter("sum")
    assert torch.equal(output(mine.eval(), family.batch(0)), expected)
    differ(output(theirs.eval(), family.batch(0)), expected, by) if by else None


def test_linear_with_rank_patterns_can_be_loaded_again(tmp_path: Path) -> None:
    """peft forgets the pattern and saves a file that no config fits (its issue 3737)."""
    family = FAMILIES["llama"]
    base = family.base()
    config = family.config(target_modules=["q_proj", "k_proj"], rank_pattern={"k_proj": 2})
    mine, theirs = pair(base, [config, {**config, "lora_alpha": 5}], tmp_path)
    combine(mine, theirs, NAMES[:2], [0.7, -0.4], combination_type="linear")
    same_outputs(mine, theirs, family.batch(0))
    expected = output(mine, family.batch(0))
    for name, model in (("peft", theirs), ("inlay", mine)):
        model.save_pretrained(str(tmp_path / name), selected_adapters=["sum"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        into_peft(base, tmp_path / "peft" / "sum")
    agree(output(into_peft(base, tmp_path / "inlay" / "sum"), family.batch(0)), expected, "in peft")
    again = inlay.PeftModel.from_pretrained(base, str(tmp_path / "inlay" / "sum")).eval()
    agree(output(again, family.batch(0)), expected)


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    """peft returns and says nothing."""
    family = FAMILIES["llama"]
    mine, theirs = pair(family.base(), [family.config()], tmp_path)
    theirs.base_model.add_weighted_adapter(["one"], [0.5], "one")
    with pytest.raises(inlay.errors.ConfigError, match="adapter_name='one' is not allowed: expected a name not in use"):
        mine.add_weighted_adapter(["one"], [0.5], "one")
