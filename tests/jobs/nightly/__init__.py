"""Tests of `jobs/nightly/`."""
