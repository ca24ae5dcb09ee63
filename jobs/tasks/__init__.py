"""Labelled tasks: their blocks of the config, and their items."""
