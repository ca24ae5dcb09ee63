"""Tests of `jobs/cluster/`."""
