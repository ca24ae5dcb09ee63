"""Tests of `jobs/prepare/`."""
