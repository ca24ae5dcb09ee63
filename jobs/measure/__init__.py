"""Vectors and token metrics become metrics of layers."""
