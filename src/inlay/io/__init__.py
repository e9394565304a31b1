"""Saving and loading adapters."""
