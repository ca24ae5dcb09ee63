"""Prompts become vectors of every layer: one forward pass each."""
