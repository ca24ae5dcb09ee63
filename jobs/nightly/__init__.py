"""New checkpoints, compared with the ones before them."""
