"""Tests of `operators/prompts/`."""
