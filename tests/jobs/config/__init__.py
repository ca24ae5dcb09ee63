"""Tests of `jobs/config/`."""
