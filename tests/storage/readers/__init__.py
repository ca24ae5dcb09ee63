"""Tests of what others read the tables with."""
