"""Reading and writing quantised weights, for every library that runs here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inlay.core.adapted import stand_in
from inlay.core.host import kind_of, site
from inlay.errors import StateError
from inlay.quant import Backend, backend, backend_of, dequantised, is_quantised, requantised, settle, size
from tests.quant.bases import EVERY, LIBRARY, need

NAMES = {"nf4": "bitsandbytes 4-bit", "fp4": "bitsandbytes 4-bit", "int8": "bitsandbytes 8-bit", "hqq": "HQQ"}


def layer_of(model: Any) -> Any:
    return model.model.layers[0].mlp.down_proj


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_read_is_what_the_layer_computes_with(kind: str, tiny: Any) -> None:
    layer, dense = layer_of(tiny(kind)), layer_of(tiny(None))
    assert backend_of(layer).name == NAMES.get(kind.split()[0], "torchao")  # type: ignore[union-attr]
    assert kind_of(layer) == "linear" and not is_quantised(dense)
    w = dequantised(layer)
    assert w.shape == (64, 128) == dense.weight.shape and w.dtype == torch.float32 and not w.requires_grad
    assert size(layer) == w.numel()
    settle(layer)
    eye = torch.eye(128)
    torch.testing.assert_close(layer(eye).T, w, rtol=0, atol=2e-5 if kind == "int8" else 1e-6)
    # rounded, but the same numbers
    assert 0 < (w - dense.weight).norm() < (0.02 if "int8" in kind else 0.13) * dense.weight.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", EVERY)
def test_writing_gives_the_layer_those_numbers_and_leaves_the_old_ones(kind: str, dtype: Any, tiny: Any) -> None:
    layer = layer_of(tiny(kind, dtype))
    settle(layer)
    before, x = dequantised(layer), torch.randn(3, 128).to(dtype)
    y = layer(x)
    wanted = before + 0.1 * torch.randn(before.shape)
    made = requantised(layer, wanted)
    assert torch.equal(dequantised(layer), before) and torch.equal(layer(x), y)
    new: Any = stand_in(layer, _parameters={**layer._parameters, **made.parameters}, **made.attributes)
    assert {type(p) for p in made.parameters.values()} == {type(layer._parameters[k]) for k in made.parameters}
    assert not any(p.requires_grad for p in made.parameters.values())
    stored = dequantised(new)
    assert (stored - wanted).norm() < (0.02 if "int8" in kind else 0.13) * wanted.norm()
    expected = x.float() @ stored.T
    torch.testing.assert_close(
        new(x).float(),
        expected,
        rtol=0,
        atol=(0.03 if dtype == torch.bfloat16 else 1e-5 if kind != "int8" else 0.03) * 9,
    )
    assert new(x).dtype == dtype


@pytest.mark.parametrize(
    "changes", [{"bnb_4bit_quant_storage": torch.bfloat16}, {"bnb_4bit_compute_dtype": torch.bfloat16}], ids=str
)
def test_4_bit_options_are_kept(changes: dict[str, Any], tiny: Any) -> None:
    layer = layer_of(tiny("nf4 double", **changes))
    assert is_quantised(layer)
    new = requantised(layer, dequantised(layer)).parameters["weight"]
    old = layer.weight
    for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage", "dtype", "shape"):
        assert getattr(new, name) == getattr(old, name), name
    assert new.quant_state.nested and new.quant_state.dtype == old.quant_state.dtype
    assert new.quant_state is not old.quant_state and new.data_ptr() != old.data_ptr()
    place = site("x", layer, "linear")
    assert place.dtype == torch.float32 and (place.out_features, place.in_features) == (64, 128)


def test_4_bit_block_sizes(tiny: Any) -> None:
    need("bitsandbytes")
    import bitsandbytes as bnb

    for block in (64, 128):
        layer = bnb.nn.Linear4bit(128, 32, bias=False, quant_type="nf4")
        layer.weight.blocksize = block
        layer = layer.to("cpu")
        assert layer.weight.quant_state.blocksize == block
        assert requantised(layer, dequantised(layer)).parameters["weight"].quant_state.blocksize == block  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["nf4", "nf4 double"])
def test_4_bit_layers_that_were_rearranged_for_inference(kind: str, tiny: Any) -> None:
    """bitsandbytes 0.50 on CPUs with AVX512-BF16: afterwards the layer has no backward, and its state dict is wrong."""
    layer = layer_of(tiny(kind))
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("needs a CPU with AVX512-BF16")
    w, x = dequantised(layer), torch.randn(3, 128)
    with torch.no_grad():
        layer(x)
    assert layer.weight.quant_state.packing_format_for_cpu
    packed = layer.weight.data.clone()
    close = {"rtol": 2**-7, "atol": 1e-6}  # absmax was rounded to bfloat16
    torch.testing.assert_close(dequantised(layer), w, **close)
    made = requantised(layer, w)
    assert torch.equal(layer.weight.data, packed) and layer.weight.quant_state.packing_format_for_cpu
    torch.testing.assert_close(dequantised(stand_in(layer, **made.attributes, _parameters=made.parameters)), w, **close)
    settle(layer)
    torch.testing.assert_close(dequantised(layer), w, **close)
    with torch.no_grad():
        layer(x)
    x.requires_grad_()
    layer.train()(x).sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand(3, -1), rtol=0.01, atol=0.01)


def test_8_bit_scales_are_found_before_and_after_the_first_forward_pass(tiny: Any) -> None:
    layer = layer_of(tiny("int8"))
    assert layer.state.SCB is None and layer.weight.SCB is not None
    w = dequantised(layer)
    layer(torch.randn(2, 128))
    assert layer.weight.SCB is None and torch.equal(dequantised(layer), w)
    made = requantised(layer, w)
    assert made.attributes["state"] is not layer.state and made.attributes["state"].threshold == layer.state.threshold


def test_layers_that_are_not_quantised_yet_are_dense() -> None:
    need("bitsandbytes")
    import bitsandbytes as bnb

    assert not is_quantised(bnb.nn.Linear4bit(64, 32)) and not is_quantised(bnb.nn.Linear8bitLt(64, 32))
    assert not is_quantised(bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=True).to("cpu"))
    with pytest.raises(StateError, match=r"This Linear is not quantised, or in a way that is not known here"):
        dequantised(nn.Linear(2, 2))


def test_a_tensor_of_torchao_that_cannot_be_made_anew(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.quant import torchao

    layer = layer_of(tiny("torchao int8"))
    monkeypatch.setattr(torchao, "_AGAIN", {})
    with pytest.raises(StateError, match=r"torchao's Int8Tensor cannot be made anew.*dequantize=True"):
        requantised(layer, dequantised(layer))


def test_torchao_with_zero_points_and_quantised_activations() -> None:
    need("torchao")
    from torchao import quantization as ao
    from torchao.quantization.quant_primitives import MappingType

    configs = {
        "intx": ao.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=ao.PerGroup(32), mapping_type=MappingType.ASYMMETRIC
        ),
        "int8": ao.Int8DynamicActivationInt8WeightConfig(),
    }
    for name, config in configs.items():
        model = nn.Sequential(nn.Linear(64, 32, bias=False))
        w = model[0].weight.detach() + 0.05
        model[0].weight.data = w.clone()
        ao.quantize_(model, config)
        layer: Any = copy.copy(model[0])
        made = requantised(layer, w).parameters["weight"]
        old: Any = layer.weight
        new: Any = made
        assert torch.equal(new.qdata, old.qdata) and torch.equal(new.scale, old.scale), name
        if name == "int8":
            assert new.act_quant_kwargs == old.act_quant_kwargs and old.act_quant_kwargs is not None
        else:
            assert torch.equal(new.zero_point, old.zero_point) and old.zero_point.any()


def test_a_new_backend_is_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_BACKENDS", dict(backend._BACKENDS))
    monkeypatch.setattr(backend, "_KNOWN", {})

    class Halved(nn.Linear):
        pass

    class Derived(Halved):
        pass

    assert not is_quantised(Derived(2, 2))
    mine = Backend("halves", lambda layer: 2 * layer.weight)
    backend.register(mine, f"{__name__}.{Halved.__qualname__}")
    layer = Derived(2, 2)
    assert backend_of(layer) is mine and torch.equal(dequantised(layer), 2 * layer.weight)
    with pytest.raises(StateError, match=r"A halves layer cannot hold other numbers.*calibration"):
        requantised(layer, dequantised(layer))


def test_every_library_is_tried() -> None:
    assert set(LIBRARY.values()) == {"bitsandbytes", "torchao"} and EVERY[-1] == "hqq"
