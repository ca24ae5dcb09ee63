"""Tests of `operators/model/`."""
