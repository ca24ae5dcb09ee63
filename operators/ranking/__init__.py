"""Ranking statistics: task scores of every layer in, evidence and a recommendation out."""
