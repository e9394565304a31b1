"""Where peft 0.21.2 departs from its own formula, W' = W + s B A: Inlay is held to the formula instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import inlay
from inlay.errors import MismatchError, TargetError

from .both import agree, differ, into_inlay, of_inlay, of_peft, output, peft
from .models import FAMILIES, convs, language

EMBEDDINGS_SAVED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


def updated(host: Any, tensors: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    """W + s B A of a convolution, by the formula: (B A)[o, i, ...] = sum over its group's c of B[o, c] A[c, i, ...]."""
    a, b = (tensors[f"base_model.model.conv.lora_{x}.weight"].double() for x in "AB")
    g = host.groups
    a, b = a.unflatten(0, (g, -1)), b.flatten(1).unflatten(0, (g, -1))
    return (host.weight.double() + scale * torch.einsum("goc,gc...->go...", b, a).flatten(0, 1)).float()


@pytest.mark.parametrize("shape", [{"dilation": 2}, {"padding": 1, "padding_mode": "circular"}], ids=str)
def test_convolutions_that_peft_forgets_half_of(shape: dict[str, Any], tmp_path: Path) -> None:
    """peft's A has the host's kernel, stride and padding, but neither its dilation nor its padding_mode."""
    model, x = convs(2, kernel_size=3, **shape)
    config = {"target_modules": ["conv"], "r": 4, "lora_alpha": 8, "init_lora_weights": False}
    theirs, mine = of_peft(model, config, tmp_path), into_inlay(model, tmp_path)
    tensors = peft.load_peft_weights(str(tmp_path))
    conv = model.conv
    with torch.no_grad():
        expected = model.head(model.point(conv._conv_forward(x, updated(conv, tensors, 2.0), conv.bias).tanh()))
    agree(output(mine, x), expected)
    if "dilation" in shape:
        with pytest.raises(RuntimeError, match="must match the size"):
            output(theirs, x)
    else:
        differ(output(theirs, x), expected)
    # merged, peft agrees with the formula, and so not with itself
    agree(output(theirs.merge_and_unload(), x), expected)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1:UserWarning")
def test_grouped_convolutions(tmp_path: Path) -> None:
    """peft's A sees all channels, (r, in, ...): B A is then no change of a grouped W, and peft cannot merge it.

    Inlay's A has the groups of its host, (r, in / g, ...). The files cannot be exchanged, and neither library loads
    the other's by mistake.
    """
    model, x = convs(2, kernel_size=3, groups=2)
    config = {"target_modules": ["conv"], "r": 4, "lora_alpha": 8, "init_lora_weights": False}
    theirs, mine = of_peft(model, config, tmp_path / "peft"), of_inlay(model, config, tmp_path / "inlay")
    conv, tensors = model.conv, peft.load_peft_weights(str(tmp_path / "inlay"))
    with torch.no_grad():
        expected = model.head(model.point(conv._conv_forward(x, updated(conv, tensors, 2.0), conv.bias).tanh()))
    agree(output(mine, x), expected)
    agree(output(mine.merge_and_unload(), x), expected)
    with pytest.raises(NotImplementedError, match="groups > 1"):
        theirs.merge_and_unload()
    with pytest.raises(MismatchError, match=r"lora_A.weight: expected shape \(4, 2, 3, 3\), got \(4, 4, 3, 3\)"):
        into_inlay(model, tmp_path / "peft")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        peft.PeftModel.from_pretrained(convs(2, kernel_size=3, groups=2)[0], str(tmp_path / "inlay"))


def test_trained_tokens_in_a_head_with_a_bias(tmp_path: Path) -> None:
    """BERT's output head is tied to the embedding and has a bias of its own, which peft's layer in it drops."""
    family = FAMILIES["bert"]
    base, batch = family.base(), family.batch(0)
    config = family.config(trainable_token_indices={"word_embeddings": [7, 8]})
    theirs, mine = of_peft(base, config, tmp_path), into_inlay(base, tmp_path)
    bias = base.cls.predictions.decoder.bias
    differ(output(mine, batch), output(theirs, batch))
    agree(output(mine, batch), output(theirs, batch) + bias)
    agree(output(mine.merge_and_unload(), batch), output(mine, batch))


@TIED
@EMBEDDINGS_SAVED
def test_merging_into_a_tied_head(tmp_path: Path) -> None:
    """peft merges into the one weight of both, so the embedding changes with the head; Inlay unties them."""
    family = FAMILIES["gpt2"]
    base, batch = family.base(), family.batch(0)
    config = family.config(target_modules=["lm_head"], fan_in_fan_out=False)
    theirs, mine = of_peft(base, config, tmp_path), into_inlay(base, tmp_path)
    before = output(mine, batch)
    agree(before, output(theirs, batch))
    agree(output(mine.merge_and_unload(), batch), before)
    with pytest.warns(UserWarning, match="Model with `tie_word_embeddings=True`"):
        differ(output(theirs.merge_and_unload(), batch), before)


@pytest.mark.parametrize("shape", [{"kernel_size": 1}, {"kernel_size": (1, 1, 3)}], ids=str)
def test_merging_pointwise_convolutions_of_three_dimensions(shape: dict[str, Any], tmp_path: Path) -> None:
    """peft takes a Conv3d whose kernel starts with 1, 1 for a Conv2d of one point, and fails."""
    model, x = convs(3, **shape)
    config = {"target_modules": ["conv"], "r": 4, "init_lora_weights": False}
    theirs, mine = of_peft(model, config, tmp_path), into_inlay(model, tmp_path)
    agree(output(mine, x), output(theirs, x))
    agree(output(mine.merge_and_unload(), x), output(mine, x))
    with pytest.raises(RuntimeError):
        theirs.merge_and_unload()


def test_targets_that_are_not_there() -> None:
    """peft adapts what it finds, and is silent about the rest."""
    family = FAMILIES["llama"]
    config = family.config(target_modules=["q_proj", "quarry"])
    assert of_peft(family.base(), config).targeted_module_names
    with pytest.raises(TargetError, match="'quarry' matches no module"):
        of_inlay(family.base(), config)


def test_layers_counted_from_the_top(tmp_path: Path) -> None:
    """Without a module around its list of layers, peft does not find a layer's number."""
    base = FAMILIES["llama"].base().model
    config = {"target_modules": ["q_proj"], "layers_to_transform": [1], "init_lora_weights": False, "r": 4}
    with pytest.raises(ValueError, match="layers_to_transform"):
        of_peft(base, config)
    of_inlay(base, config, tmp_path)
    keys = peft.load_peft_weights(str(tmp_path))
    assert set(keys) == {f"base_model.model.layers.1.self_attn.q_proj.lora_{x}.weight" for x in "AB"}


def test_biases_of_a_disabled_adapter() -> None:
    """peft trains the base's own biases, so that disabling the adapter does not give the base back."""
    family = FAMILIES["opt"]
    base, batch = family.base(), family.batch(0)
    config = family.config(bias="all")
    theirs, mine = of_peft(base, config), of_inlay(base, config)
    with mine.disable_adapter():
        assert torch.equal(output(mine, batch), output(base, batch))
    with pytest.warns(UserWarning, match="Careful, disabling adapter layers with bias"), theirs.disable_adapter():
        differ(output(theirs, batch), output(base, batch))


def test_a_missing_key(tmp_path: Path) -> None:
    """peft warns and goes on with a random adapter, and says nothing of keys it has no place for."""
    from safetensors.torch import load_file, save_file

    family = FAMILIES["llama"]
    base = family.base()
    of_peft(base, family.config(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("lora_A.weight"))
    tensors[key.replace("lora_A", "lora_Z")] = tensors.pop(key)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="missing adapter keys"):
        peft.PeftModel.from_pretrained(family.base(), str(tmp_path))
    with pytest.raises(MismatchError, match="missing") as caught:
        into_inlay(base, tmp_path)
    assert caught.value.missing == [key]
    assert caught.value.unexpected == [key.replace("lora_A", "lora_Z")]


def test_padding_is_not_looked_up() -> None:
    """What both agree on: the padding row of an adapted embedding gets no gradient (see test_numbers)."""
    table = torch.nn.Embedding(5, 3, padding_idx=1)
    view = inlay.get_peft_model(
        torch.nn.Sequential(table), inlay.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    )
    ids = torch.tensor([[0, 1, 4]])
    view(ids).sum().backward()
    (a,) = (p for name, p in view.named_parameters() if name.endswith("A"))
    assert a.grad[:, 1].abs().max() == 0
    assert a.grad[:, 4].abs().min() > 0
    with torch.no_grad():  # its value counts nevertheless, as the table's own does
        plain = F.embedding(ids, table.weight)
        assert (view(ids) - plain)[0, 1].abs().max() > 0


def test_the_data_has_padding() -> None:
    assert any((language(seed, low=0)["input_ids"] == 1).any() for seed in range(20))
