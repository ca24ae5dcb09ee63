"""Tests of `operators/benchmark/`."""
