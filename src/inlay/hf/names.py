"""Module names of earlier transformers releases, from transformers' own table of checkpoint renamings.

transformers 5 renamed modules (ViT's `attention.query` became `q_proj`); its table says how keys of old checkpoints
map to new ones. Read backwards it gives a module's earlier name, so that guides' configs and older adapters work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inlay.core.plan import walk


def earlier_names(model: Any) -> Mapping[str, str]:
    """path -> the path it had in earlier releases, for every module that was called otherwise.

    Empty for transformers releases without such a table. A name that does not map back to its module is left out.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return {}
    renamings = [t for t in get_model_conversion_mapping(model, add_legacy=False) if type(t) is WeightRenaming]
    if not renamings:
        return {}
    backwards = [t.reverse_transform() for t in reversed(renamings)]
    found = {}
    for path in walk(model):
        # the table speaks of parameters: some patterns end in a dot, or name one
        key = path + ".weight"
        earlier = _renamed(key, backwards)
        if earlier != key and _renamed(earlier, renamings) == key:
            found[path] = earlier.removesuffix(".weight")
    return found


def _renamed(key: str, transforms: list[Any]) -> str:
    for transform in transforms:
        key, _ = transform.rename_source_key(key)
    return key
