"""The methods. Importing this package registers them; one import line each."""

from inlay.methods.lora import LoraConfig

__all__ = ["LoraConfig"]
