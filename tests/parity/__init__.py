"""Inlay beside an installed peft 0.21.2, skipped without one."""

# peft asks transformers for an attribute that transformers is about to drop
DEPRECATED = "`is_gradient_checkpointing` is deprecated"
