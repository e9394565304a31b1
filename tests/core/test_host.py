"""Hosts: kinds by ancestry, sizes, dtypes and devices of sites, and the operation of each kind."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from inlay.core import host as hosts
from inlay.core.active import ActiveAdapters
from inlay.core.adapted import adapt
from inlay.core.host import canonical, is_transposed, kind_of, numel, output_scale, product, site, unreached_children
from tests.tiny import close


def conv1d(nf: int, nx: int) -> Any:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(nf, nx)


def scaled(scale: float = 3.0) -> Any:
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    return BartScaledWordEmbedding(10, 4, padding_idx=1, embed_scale=scale)


class Sub(nn.Linear):
    """As a quantiser's linear layer: a subclass under another name."""


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Linear(2, 3), "linear"),
        (Sub(2, 3), "linear"),
        (conv1d(2, 3), "linear"),
        (nn.Embedding(4, 2), "embedding"),
        (scaled(), "embedding"),
        (nn.Conv1d(2, 2, 1), "conv1d"),
        (nn.Conv2d(2, 2, 1), "conv2d"),
        (nn.Conv3d(2, 2, 1), "conv3d"),
        (nn.ConvTranspose2d(2, 2, 1), None),
        (nn.EmbeddingBag(4, 2), None),
        (nn.Bilinear(2, 2, 2), None),
        (nn.LayerNorm(2), None),
        (nn.LSTM(2, 2), None),
        (nn.Sequential(nn.Linear(2, 2)), None),
    ],
)
def test_kinds(module: nn.Module, kind: str | None) -> None:
    assert kind_of(module) == kind
    if kind is not None:
        adapt(module, ActiveAdapters())
        assert kind_of(module) == kind, "an adapted host is of the same kind"


def test_a_parametrized_layer_is_of_its_kind() -> None:
    layer = nn.Linear(2, 3)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert kind_of(layer) == "linear"


def test_only_conv1d_is_stored_transposed() -> None:
    layer = conv1d(5, 3)
    assert is_transposed(layer) and not is_transposed(nn.Linear(3, 5))
    assert canonical(layer, layer.weight).shape == (5, 3)
    assert canonical(layer, canonical(layer, layer.weight)).shape == layer.weight.shape == (3, 5)


@pytest.mark.parametrize(
    ("module", "inside", "outside"),
    [
        (nn.Linear(2, 3), 2, 3),
        (conv1d(5, 3), 3, 5),
        (nn.Embedding(10, 4), 10, 4),
        (nn.Conv1d(2, 6, 3, groups=2), 2, 6),
        (nn.Conv2d(2, 6, 3), 2, 6),
        (nn.Conv3d(2, 6, 3), 2, 6),
    ],
)
def test_sizes(module: Any, inside: int, outside: int) -> None:
    at = site("x", module, kind_of(module) or "")
    assert (at.in_features, at.out_features) == (inside, outside)
    if type(module) is nn.Linear:
        del module.in_features, module.out_features
        assert (at.in_features, at.out_features) == (inside, outside), "the weight says so too"


@pytest.mark.parametrize(
    ("dtype", "kept", "widened"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float8_e4m3fn, torch.float32, torch.float32),
    ],
)
def test_dtypes(dtype: torch.dtype, kept: torch.dtype, widened: torch.dtype) -> None:
    layer = nn.Linear(2, 3).to(dtype)
    assert site("x", layer, "linear").dtype is widened
    assert site("x", layer, "linear", keep_base_dtype=True).dtype is kept


def test_a_quantised_host_has_float32_adapters() -> None:
    layer = nn.Linear(2, 3, bias=False)
    layer.weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.uint8), requires_grad=False)  # as 4-bit layers pack it
    assert site("x", layer, "linear", keep_base_dtype=True).dtype is torch.float32
    layer.bias = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    assert site("x", layer, "linear").dtype is torch.float32


def test_devices() -> None:
    layer = nn.Linear(2, 3)
    assert site("x", layer, "linear").device.type == "cpu"
    assert site("x", layer, "linear", on_meta=True).device.type == "meta"
    assert site("x", nn.Linear(2, 3, device="meta"), "linear").device.type == "meta"
    assert site("x", nn.ReLU(), "module").device.type == "cpu"
    assert site("x", nn.BatchNorm1d(2, affine=False), "module").dtype is torch.float32


def test_a_site_that_accelerate_offloads_is_where_it_computes() -> None:
    layer = nn.Linear(2, 3, device="meta")
    layer._hf_hook = types.SimpleNamespace(offload=True, execution_device=None)
    assert site("x", layer, "linear").device.type == "cpu"
    layer._hf_hook = types.SimpleNamespace(hooks=[types.SimpleNamespace(offload=False, execution_device="cpu")])
    assert site("x", layer, "linear").device.type == "meta"


def test_scaled_embeddings_are_recognised() -> None:
    assert output_scale(scaled(3.0)) == 3.0
    assert output_scale(nn.Embedding(2, 2)) == 1.0
    adapted = scaled(5.0)
    adapt(adapted, ActiveAdapters())
    assert output_scale(adapted) == 5.0
    plain = nn.Embedding(2, 2)
    plain.embed_scale = 9.0  # an attribute that its forward does not use
    assert output_scale(plain) == 1.0


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(4, 3), torch.randn(2, 4)),
        (conv1d(3, 4), torch.randn(2, 4)),
        (nn.Embedding(10, 4, padding_idx=2), torch.tensor([[1, 2]])),
        (scaled(), torch.tensor([1, 2])),
        (nn.Conv1d(4, 4, 3, groups=2, padding_mode="reflect", padding=1), torch.randn(2, 4, 5)),
        (nn.Conv2d(4, 3, 3, stride=2, padding="valid"), torch.randn(2, 4, 5, 5)),
        (nn.Conv3d(4, 3, 2, dilation=2, bias=False), torch.randn(2, 4, 5, 5, 5)),
    ],
)
def test_the_product_with_its_own_weight_is_the_hosts_output(module: Any, x: torch.Tensor) -> None:
    close(product(module, x, canonical(module, module.weight), getattr(module, "bias", None)), module(x), 1e-5, 1e-6)
    other = torch.randn_like(canonical(module, module.weight))
    twin: Any = module
    with torch.no_grad():
        expected = product(module, x, other, None)
        twin.weight.copy_(canonical(module, other))
        if getattr(twin, "bias", None) is not None:
            twin.bias.zero_()
    close(expected, twin(x), 1e-5, 1e-6)


def test_every_module_that_a_fused_path_reads_is_known() -> None:
    """In evaluation an encoder layer hands its weights to one fused operator, and calls none of its children."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval().requires_grad_(False)
    before = layer(torch.ones(1, 3, 4))
    owners = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
    assert {"linear1", "linear2", "norm1", "norm2", "self_attn", "self_attn.out_proj"} == owners
    for path in owners:
        module = layer.get_submodule(path)
        module.__class__ = type("Broken", (type(module),), {"forward": lambda *_, **__: 1 / 0})
        assert torch.equal(layer(torch.ones(1, 3, 4)), before), f"{path} is not called"
        assert path in unreached_children(layer), path


def test_multihead_attention_never_calls_its_output_projection() -> None:
    layer = nn.MultiheadAttention(4, 2)
    layer.out_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    layer(*[torch.ones(3, 4)] * 3)
    assert unreached_children(layer) == ("out_proj",)
    assert unreached_children(nn.Linear(1, 1)) == ()


def test_numel_counts_packed_and_partitioned_parameters_in_full() -> None:
    p: Any = nn.Parameter(torch.zeros(6))
    assert numel(p) == 6
    p.ds_numel = 100
    assert numel(p) == 100
    p.quant_state = types.SimpleNamespace(shape=torch.Size([4, 8]))
    assert numel(p) == 32


def test_no_library_is_imported_to_recognise_its_layers() -> None:
    assert all(name.startswith(("torch.", "transformers.", "hqq.", "gptqmodel.", "awq.")) for name in hosts.KINDS)
    assert "transformers" not in vars(hosts)
    assert F.linear is vars(hosts)["F"].linear
