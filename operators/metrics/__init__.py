"""Representation metrics: pure functions of tensors, one per file."""
