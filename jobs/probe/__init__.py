"""Vectors and tasks become scores of layers."""
