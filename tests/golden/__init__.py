"""Expected values of the metrics, copied from the reference set by ``copy_cases``."""
