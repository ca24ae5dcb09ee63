"""Labelled tasks: how rows become items, what is refused, and how a layer is scored on them."""
