"""The formats that Inlay knows. Importing this package registers them."""

from __future__ import annotations

from inlay.data.formats import adgen, alpaca, apibench, chat, plain

__all__ = ["adgen", "alpaca", "apibench", "chat", "plain"]
