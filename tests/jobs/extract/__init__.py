"""Tests of `jobs/extract/`."""
