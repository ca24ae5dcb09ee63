"""Tests of `operators/ranking/`."""
