"""The contract of a method: one `Adapter` per host it sits in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.config import PeftConfig
from inlay.core.host import Site, product, weight_of
from inlay.core.stored import StoredProduct


def alias(name: str) -> Any:
    """A parameter's name in the formulas, where the model's `named_parameters` calls it `name`, as tools know it."""
    return property(lambda adapter: getattr(adapter, name), doc=f"`{name}`")


class Adapter(nn.Module):
    r"""What one adapter adds to one host: W' = weight(W), b' = bias(b).

    A method subclasses this, states its formula in `weight` (and `bias` if it changes it), and may add a faster
    `forward` that must compute the same; the contract tests hold it to that. Weights are canonical (`core.host`).

    Class attributes:
        reads_weight: the method needs W itself (it is no additive change of the output), so it is innermost in a
            host's composition, and a host takes only one such active adapter.
        replaces_host: it is a stand-in for the whole host, whose children are then not called.
        mergeable: False for methods that have no `weight`.
        unmergeable: why, for the message.
        mixable: False for methods that change the shape of what passes, which rows of one batch cannot do each in
            their own way.
    """

    reads_weight: ClassVar[bool] = False
    replaces_host: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    unmergeable: ClassVar[str] = "is no change of the weight"
    mixable: ClassVar[bool] = True

    merged = False  # whether the host's weight includes this adapter at present

    def __init__(self, config: PeftConfig, site: Site):
        super().__init__()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `.to()`, `.half()` and the like do; but 8 bits are for storing frozen weights: an adapter keeps more."""

        def kept(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            narrow = made.is_floating_point() and made.dtype.itemsize < 2
            return tensor.to(made.device) if narrow else made

        return super()._apply(kept, recurse)  # type: ignore[no-untyped-call]

    def parameter(self, site: Site, *shape: int) -> nn.Parameter:
        """A new, uninitialised parameter for `site`; as all of an adapter's, frozen until it is to be trained."""
        return nn.Parameter(torch.empty(shape, dtype=site.dtype, device=site.device), requires_grad=False)

    def reset(self, host: nn.Module) -> None:
        """Initialises the parameters as the config says. Not called when they are about to be loaded."""

    def weight(self, w: Tensor) -> Tensor:
        """W' for the host's weight W, both canonical: the method's formula, and the specification of `forward`."""
        raise NotImplementedError(f"{type(self).__name__} cannot be written as a change of the weight.")

    def bias(self, b: Tensor | None) -> Tensor | None:
        """b' for the host's bias b. By default b."""
        return b

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        """The adapted host's output for `x`; `base` is what the host computes without this adapter.

        By default the host's operation with W' and b', in W's dtype, or x's if W is quantised: right for every
        `reads_weight` method.
        """
        stored = weight_of(host)
        w = self.weight(stored if stored is host._parameters.get("weight") else stored.to(x.dtype))
        return product(host, x, w, self.bias(getattr(host, "bias", None)))

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: key behind the host's path in `adapter_model.safetensors` -> parameter or buffer."""
        raise NotImplementedError

    def shared_tensors(self) -> dict[str, Tensor]:
        """What the adapters of one name share and save once: key in the file, as it stands there -> tensor."""
        return {}

    def training_state(self) -> dict[str, Tensor]:
        """What going on with training needs, if that is not what `tensors` and `shared_tensors` say: all of it.

        Saved beside the adapter while that is being trained, and read instead of it to train on. Keys as in `tensors`.
        """
        return {}

    @classmethod
    def stored_product(cls, config: Any, path: str, stored: Mapping[str, Tensor]) -> StoredProduct | None:
        """The s B A that the file's tensors at `path` (keys as in `tensors`) stand for; None if they tell of none.

        Raises MismatchError if they do not fit together, or not the config.
        """
        return None

    def brings(self, host: nn.Module) -> list[nn.Parameter]:
        """The host's own parameters whose values in the base do not matter, or not all: they come with the adapter."""
        return self.replaces(host)

    def replaces(self, host: nn.Module) -> list[nn.Parameter]:
        """The host's own parameters that this adapter has a trained copy of (they are not counted twice)."""
        return []
