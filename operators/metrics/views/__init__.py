"""Metrics that compare views of the same prompts."""
