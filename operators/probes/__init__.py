"""Labelled probes: how well one layer's vectors solve a task. One probe type per file."""

# The metric of each probe type that a ranking reads, by its name in the `probe_scores` table.
MAIN_METRICS = {
    "classification": "accuracy",
    "clustering": "v_measure",
    "retrieval": "ndcg_at_10",
}
