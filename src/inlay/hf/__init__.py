"""Glue to transformers (and accelerate): the only package that imports them, and never when `inlay` is imported."""
