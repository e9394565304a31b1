"""Variants of LoRA: other formulas over the same A and B, chosen by `LoraConfig.variant`."""
