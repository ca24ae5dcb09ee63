"""Tests of `jobs/rank/`."""
