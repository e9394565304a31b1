"""Parts of the base that a view trains in full: private copies, so that the base keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from inlay.config import PeftConfig
from inlay.core.adapted import clone_unadapted, stand_in
from inlay.core.adapter import Adapter
from inlay.core.classes import original_class
from inlay.core.gather import whole
from inlay.core.host import UNMERGED, Site, unmerged_parameters


class TrainedModule(Adapter):
    """A whole module trained in full (`modules_to_save`): y = M'(x), M' a private copy of the host M.

    M' starts as M. Keys on disk: the module's own, `classifier.weight`.
    """

    reads_weight = replaces_host = True

    def __init__(self, config: PeftConfig, site: Site):
        super().__init__(config, site)
        self.module = clone_unadapted(site.module)
        own_tensors(self.module)
        self.module.requires_grad_(False)

    def forward(self, base: Callable[..., Any], *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict(keep_vars=True))

    def replaces(self, host: nn.Module) -> list[nn.Parameter]:
        inside = [m for path, m in host.named_modules() if path.partition(".")[0] != "adapters"]
        return [p for m in inside for p in unmerged_parameters(m).values() if p is not None]

    def lend(self, host: nn.Module) -> None:
        """Has `host`, and what is in it, hold the parameters of M' until it gets its own back (`UNMERGED`)."""
        pairs = [(host, self.module)]
        for module, own in pairs:
            module.__dict__.setdefault(UNMERGED, module._parameters)
            module._parameters = own._parameters
            pairs += [(module._modules[k], m) for k, m in own._modules.items() if m is not None]  # type: ignore[misc]


class TrainedParameters(Adapter):
    """Some of a module's own parameters trained in full (`bias="all"`): the host's forward with private copies.

    Args:
        names: which parameters; the others stay the host's.
        made: id of a parameter -> its copy, of the same adapter elsewhere: parameters that are tied stay tied.
    """

    reads_weight = True

    def __init__(self, config: PeftConfig, site: Site, names: list[str], made: dict[int, nn.Parameter] | None = None):
        super().__init__(config, site)
        made = {} if made is None else made
        own = {n: p for n, p in site.module._parameters.items() if p is not None and n in names}
        self.copies = nn.ParameterDict({n: made.setdefault(id(p), _copy(p)) for n, p in own.items()})
        self.copies.requires_grad_(False)

    def weight(self, w: Tensor) -> Tensor:
        own: Tensor = self.copies.get("weight", w)
        return own

    def bias(self, b: Tensor | None) -> Tensor | None:
        own: Tensor | None = self.copies.get("bias", b)
        return own

    def forward(self, base: Callable[..., Any], *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        own = dict(host._parameters)
        for name in self.copies:
            own[name] = self.copies[name]
        return original_class(host).forward(stand_in(host, _parameters=own), *args, **kwargs)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.copies.items())

    def replaces(self, host: nn.Module) -> list[nn.Parameter]:
        held = [own[name] for name in self.copies for own in (unmerged_parameters(host), host._parameters)]
        return list({id(p): p for p in held if p is not None}.values())


def own_tensors(module: nn.Module) -> None:
    """Gives `module` and its descendants parameters and buffers of their own, equal to those they shared."""
    memo: dict[int, Any] = {}
    for m in module.modules():
        m._parameters = {k: p if p is None else memo.setdefault(id(p), _copy(p)) for k, p in m._parameters.items()}
        m._buffers = {k: b if b is None else memo.setdefault(id(b), b.clone()) for k, b in m._buffers.items()}


def _copy(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(whole(p).detach().clone(), requires_grad=p.requires_grad)
