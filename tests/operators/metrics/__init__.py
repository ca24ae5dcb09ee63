"""Tests of `operators/metrics/`."""
