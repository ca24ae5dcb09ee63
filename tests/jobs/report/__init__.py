"""Tests of `jobs/report/`."""
