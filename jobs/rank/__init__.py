"""Scores become a ranking of layers with its evidence."""
