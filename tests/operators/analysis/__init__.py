"""Tests of `operators/analysis/`."""
