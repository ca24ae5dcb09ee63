"""Tests of `operators/`."""
