"""Inlay: parameter-efficient fine-tuning. See README.md."""
