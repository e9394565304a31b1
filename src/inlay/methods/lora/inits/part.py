"""What the configs of single inits have in common: they are objects inside `adapter_config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from inlay.errors import ConfigError, did_you_mean

Self = TypeVar("Self", bound="Part")


@dataclasses.dataclass
class Part:
    """A config inside a config."""

    @classmethod
    def from_dict(cls: type[Self], data: Mapping[str, Any]) -> Self:
        """The part that `data` describes. Raises ConfigError for a field it does not have."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in data.keys() - set(known):
            raise ConfigError.of("field", name, f"a field of {cls.__name__}", did_you_mean(str(name), known).strip())
        return cls(**data)
