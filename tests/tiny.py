"""Tiny models with fixed weights, and ways to look at them: what the tests share."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn

VOCAB = 40


class Net(nn.Module):
    """One host of every kind: embedding, conv1d, conv2d, conv3d, linear, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.conv1 = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.conv2 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv3 = nn.Conv3d(1, 2, (1, 2, 3), stride=(1, 1, 2), padding=(0, 1, 1))
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)  # (batch, time, 8)
        h = h + self.conv1(h.transpose(1, 2)).transpose(1, 2)
        h = h + self.conv2(h.unsqueeze(1)).mean(1)
        h = h + self.conv3(h[:, None, None]).mean((1, 2, 4))[:, : h.shape[1], None]
        return self.head(torch.tanh(self.fc(self.norm(h))))  # type: ignore[no-any-return]


HOSTS = {
    "linear": ["fc", "head"],
    "embedding": ["embed"],
    "conv1d": ["conv1"],
    "conv2d": ["conv2"],
    "conv3d": ["conv3"],
    "module": ["norm"],
}
"""Kind of host -> its paths in `Net`."""


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def made(build: Callable[[], Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """`build()` with the weights that `seed` gives, evaluating."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(dtype).eval()


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    """A `Net`."""
    return made(Net, seed, dtype)  # type: ignore[no-any-return]


def mlp(seed: int = 0, width: int = 8, dtype: torch.dtype = torch.float32) -> Mlp:
    """An `Mlp`."""
    return made(lambda: Mlp(width), seed, dtype)  # type: ignore[no-any-return]


def ids(rows: int = 3, length: int = 5, vocab: int = VOCAB) -> Tensor:
    """Token ids."""
    return (torch.arange(rows * length) * 7 % vocab).view(rows, length)


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, cls: str = "LlamaForCausalLM", **changes: Any) -> Any:
    """A Llama of two layers."""
    import transformers

    config = transformers.LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        }
    )
    return made(lambda: getattr(transformers, cls)(config), seed, dtype)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's tensors."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """True if two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def outline(model: nn.Module) -> dict[str, Any]:
    """All of a model that adding adapters might change: classes, attributes, requires_grad, tensors."""
    return {
        "classes": {path: type(m) for path, m in model.named_modules()},
        "attributes": {path: sorted(vars(m)) for path, m in model.named_modules()},
        "grad": {path: p.requires_grad for path, p in model.named_parameters()},
        "identity": {path: id(p) for path, p in model.named_parameters(remove_duplicate=False)},
        "tensors": {k: v.tolist() for k, v in snapshot(model).items()},
    }


def scramble(view: Any, size: float = 0.1, seed: int = 7) -> Any:
    """Moves every adapter parameter off its initial value; returns the view."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapters in view._inlay.placed.values():
            for adapter in adapters.values():
                for p in adapter.parameters():
                    if p.is_floating_point():
                        p.add_((size * torch.randn(p.shape, generator=generator, dtype=torch.float32)).to(p))
    return view


def close(a: Tensor, b: Tensor, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    """Raises AssertionError unless two tensors agree."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def older(package: str, version: str) -> bool:
    """Whether an older release of `package` is installed than `version`."""
    return Version(importlib.metadata.version(package)) < Version(version)
