"""Tests of `jobs/cli/`."""
