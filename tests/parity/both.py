"""The two libraries side by side: the same config, the same files, the same numbers."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import inlay

from . import DEPRECATED

peft = pytest.importorskip("peft", minversion="0.21.2")

TOLERANCE = 1e-5
STEPS = 20
KNOWN_HEADS = {"classifier", "score", "qa_outputs"}


def spread(model: nn.Module, seed: int = 5, std: float = 0.1) -> None:
    """Gives everything that is trained a random change, so that nothing saved equals its initial value."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=made) * std)


def made_by(library: Any, config: Mapping[str, Any]) -> Any:
    """The library's config object: of the class that `config["method"]` names (`LoraConfig` if it names none)."""
    fields = copy.deepcopy(dict(config))
    return getattr(library, fields.pop("method", "LoraConfig"))(**fields)


def of_peft(
    base: nn.Module, config: Mapping[str, Any], folder: Path | None = None, prepare: Callable[[Any], object] = spread
) -> Any:
    """A peft model of a copy of `base` (peft changes its base), its adapter changed by `prepare`, saved to `folder`."""
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(base), made_by(peft, config))
    prepare(model)
    if folder is not None:
        model.save_pretrained(str(folder))
    return model.eval()


def of_inlay(
    base: nn.Module, config: Mapping[str, Any], folder: Path | None = None, prepare: Callable[[Any], object] = spread
) -> Any:
    """As `of_peft`, by Inlay: a view of `base`."""
    torch.manual_seed(1)
    view = inlay.get_peft_model(base, made_by(inlay, config))
    prepare(view)
    if folder is not None:
        view.save_pretrained(str(folder))
    return view.eval()


def into_peft(base: nn.Module, folder: Path, **fields: Any) -> Any:
    """`folder`'s adapter in peft, on a copy of `base`. Fails on any warning, and on a key peft does not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)  # of the config
        warnings.filterwarnings("ignore", "Unsupported layer type .*Norm'", UserWarning)  # of its own LN tuning
        model = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder), **fields)
        # peft is silent about keys that have no place: ask it again
        again = peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(folder)))
    assert not again.unexpected_keys, again.unexpected_keys
    return model.eval()


def into_inlay(base: nn.Module, folder: Path, **fields: Any) -> Any:
    """`folder`'s adapter in Inlay, strictly: a missing, unexpected or misshapen key is an error."""
    return inlay.PeftModel.from_pretrained(base, str(folder), **fields).eval()


def output(model: Any, batch: Mapping[str, Tensor] | Tensor) -> Tensor:
    """The logits, or what a model without any returns first; without gradients."""
    with torch.no_grad():
        found = model(batch) if isinstance(batch, Tensor) else model(**batch)
    if isinstance(found, Tensor):
        return found
    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits])
    return found.logits if "logits" in found else found[0]


def agree(found: Tensor, expected: Tensor, what: str = "", tolerance: float = TOLERANCE) -> None:
    """Equal to 1e-5 in every entry."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} and {tuple(expected.shape)}"
    error = float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0
    assert error <= tolerance, f"{what}: they differ by {error:.3g}, allowed {tolerance:.3g}"


def differ(one: Tensor, other: Tensor, by: float = 1e-2) -> None:
    """Far enough apart that `agree` on either would tell them from one another."""
    assert float((one - other).abs().max()) > by


def same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """The same keys, and under each key tensors that agree."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    for key, value in expected.items():
        agree(found[key], value, key, tolerance)


def gradients(library: Any, model: Any) -> dict[str, Tensor]:
    """The adapter's gradients under the keys of its file."""
    found = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    state = {**dict(model.named_buffers(remove_duplicate=False)), **found}  # peft insists on a method's fixed bases
    saved = library.get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    own = {g.data_ptr() for g in found.values()}
    return {key: tensor for key, tensor in saved.items() if tensor.data_ptr() in own}


def losses(model: Any, batches: list[Mapping[str, Tensor]], lr: float = 3e-3) -> Tensor:
    """The losses of one AdamW step per batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    found = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


def losses_of(model: Any, x: Tensor) -> Tensor:
    """The mean squares of a plain model's output, over the steps of AdamW that lower them."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def layout(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the weight file holds: key -> (dtype, shape)."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: (s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}


def settings(folder: Path) -> dict[str, Any]:
    """The config file, with lists that mean sets sorted (peft writes them in hash order)."""
    found = json.loads((folder / "adapter_config.json").read_text())
    return {k: sorted(v) if isinstance(v, list) and k != "layers_to_transform" else v for k, v in found.items()}


def same_settings(mine: Path, theirs: Path, *, but: Sequence[str] = ()) -> None:
    """Both config files say the same: a field that one of them leaves out has peft's default in the other.

    `but`: fields that are spelled differently, whose meaning the layout of the weights shows.
    """
    found, expected = settings(mine), settings(theirs)
    method = peft.PEFT_TYPE_TO_CONFIG_MAPPING[expected["peft_type"]]
    required = {k: expected[k] for k in ("total_step",) if k in expected}
    default = {**method(**required).to_dict(), "peft_type": expected["peft_type"], "inference_mode": True}
    assert found.keys() <= default.keys(), f"peft does not know {found.keys() - default.keys()}"
    for key in default.keys() - set(but):
        one, other = found.get(key, default[key]), expected.get(key, default[key])
        if key == "modules_to_save":  # peft names every head that it knows of, ours those that the model has
            one, other = (sorted({*(names or ())} - KNOWN_HEADS) for names in (one, other))
        assert one == other, f"{key}: {one!r}, peft writes {other!r}"


def swap(
    base: nn.Module,
    config: Mapping[str, Any],
    batch: Any,
    folder: Path,
    *,
    prepare: Callable[[Any], object] = spread,
    but: Sequence[str] = (),
) -> None:
    """Both ways through the files: what one library saves, the other loads, with equal outputs and equal files."""
    before = output(base, batch)
    theirs = of_peft(base, config, folder / "peft", prepare)
    loaded = into_inlay(base, folder / "peft")
    agree(output(loaded, batch), output(theirs, batch), "saved by peft, loaded by Inlay")
    differ(output(theirs, batch), before)
    mine = of_inlay(base, config, folder / "inlay", prepare)
    again = into_peft(base, folder / "inlay")
    agree(output(again, batch), output(mine, batch), "saved by Inlay, loaded by peft")
    differ(output(mine, batch), before)
    assert torch.equal(output(base, batch), before), "the base changed"
    assert layout(folder / "inlay") == layout(folder / "peft")
    same_settings(folder / "inlay", folder / "peft", but=but)
    # and round: what Inlay loaded from peft it saves as peft did
    loaded.save_pretrained(str(folder / "again"))
    assert layout(folder / "again") == layout(folder / "peft")
    same_tensors(peft.load_peft_weights(str(folder / "again")), peft.load_peft_weights(str(folder / "peft")))


def compare(family: Any, config: Mapping[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """From the same adapter weights: logits, adapter gradients, and the losses of 20 AdamW steps (`family`: models.py).

    In float32 to 1e-5; in float64 to 1e-9, the weights after training included.
    """
    exact = dtype == torch.float64
    tolerance = 1e-9 if exact else TOLERANCE
    base = family.base().to(dtype)
    theirs = of_peft(base, config, folder)
    mine = into_inlay(base, folder, is_trainable=True)
    given = [family.batch(seed) for seed in range(STEPS)]
    batches = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()} for batch in given]

    before = output(base, batches[0])
    agree(output(mine, batches[0]), output(theirs, batches[0]), "logits", tolerance)
    differ(output(mine, batches[0]), before)

    for model in (mine, theirs):
        model(**batches[0]).loss.backward()
    expected = gradients(peft, theirs)
    assert sum(bool(g.abs().max() > 1e-4) for g in expected.values()) > len(expected) // 2
    trained = set(expected)
    same_tensors(gradients(inlay, mine), expected, tolerance)
    for model in (mine, theirs):
        model.zero_grad()

    agree(losses(mine, batches), losses(theirs, batches), "losses", tolerance)
    assert torch.equal(output(base, batches[0]), before), "the base changed"
    if exact:
        found, expected = (lib.get_peft_model_state_dict(m) for lib, m in ((inlay, mine), (peft, theirs)))
        same_tensors(found, expected, tolerance)
        loaded = peft.load_peft_weights(str(folder))
        assert all((expected[key] - loaded[key]).abs().max() > 1e-3 for key in trained if "lora" in key)
