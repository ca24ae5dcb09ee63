"""A run, as a YAML file: its blocks, checked and frozen."""
