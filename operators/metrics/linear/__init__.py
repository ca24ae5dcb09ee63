"""Metrics of all prompts' vectors: spectra, moments, similarity of layers."""
