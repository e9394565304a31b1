"""Adapters into weights."""
