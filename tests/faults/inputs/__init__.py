"""Bad inputs through the real command line: each is one clear line and exit 1 or 2, or it works."""
