"""Metrics of the tokens of one prompt."""
