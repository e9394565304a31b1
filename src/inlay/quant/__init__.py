"""Quantised layers: their weights as numbers, and numbers as their weights. One file per library.

Computing needs nothing of this: an adapted host calls the quantised layer's own `forward`. To merge, or to read a
weight (DoRA, PiSSA, LoftQ), it takes

    dequantised(host)       W, dense, (out, in), float32
    requantised(host, W)    what the layer holds in place of it: new parameters and attributes, the old ones untouched

A layer is recognised by the qualified name of its class or its weight's (`backend.py`): no library is imported for it.
"""

from inlay.core.host import READERS
from inlay.quant import bitsandbytes, hqq, packed, torchao  # they register themselves
from inlay.quant.backend import (
    Backend,
    Replacement,
    backend_of,
    dequantised,
    is_quantised,
    packed_in,
    requantised,
    settle,
    size,
)

# fmt: off
__all__ = [
    "Backend", "Replacement", "backend_of", "bitsandbytes", "dequantised", "hqq", "is_quantised", "packed", "packed_in",
    "requantised", "settle", "size", "torchao",
]
# fmt: on

READERS.append(lambda host: dequantised(host) if is_quantised(host) else None)
