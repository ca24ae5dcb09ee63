"""Tests of `jobs/measure/`."""
