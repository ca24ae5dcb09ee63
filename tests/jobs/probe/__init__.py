"""Tests of `jobs/probe/`."""
