"""What advice is worth: measured on real models and texts."""
