"""Datasets become shards of unique prompts, and the tables of their tasks."""
