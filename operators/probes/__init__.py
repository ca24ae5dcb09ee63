"""Labelled probes: how well one layer's vectors solve a task. A file per form of the items."""
