"""Prompts as they are changed: conditions, views, templates, the seeds they are drawn with."""
