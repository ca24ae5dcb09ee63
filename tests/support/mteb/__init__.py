"""Tasks of mteb from local data."""
