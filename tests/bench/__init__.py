"""Benchmarks: speed and memory side by side in one run, reported and never asserted."""
