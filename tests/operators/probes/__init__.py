"""Tests of `operators/probes/`."""
