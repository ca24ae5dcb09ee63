"""One idea of the report a file: what it reads, says and draws."""
