"""What an adapter's folder holds and whether it is sound, without its base.

inspection   `Inspection`, what was found, and its text
folder       `inspect_adapter`: one adapter's files; `adapters_in`: which there are
layers       tensors by the layer they belong to, and their norms
"""

from __future__ import annotations

from inlay.inspection.folder import adapters_in, inspect_adapter
from inlay.inspection.inspection import Inspection

__all__ = ["Inspection", "adapters_in", "inspect_adapter"]
