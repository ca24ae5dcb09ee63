"""Prompts as they are changed: conditions, views, the seeds they are drawn with."""
