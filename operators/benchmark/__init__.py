"""mteb's own tasks and evaluators over stored vectors: which texts a task reads, and its scores."""
