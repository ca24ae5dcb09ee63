"""What metrics, scores and conditions have to do with one another."""
