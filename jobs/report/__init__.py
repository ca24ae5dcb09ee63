"""What a run found, as a page, as text and as JSON."""
