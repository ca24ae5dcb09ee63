"""What runs where: one file per stage. The only package that imports ray."""
