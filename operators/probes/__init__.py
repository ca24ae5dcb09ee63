"""Labelled probes: how well one layer's vectors solve a task. A file per form of the items."""

# The metric of each probe type that a ranking reads, by its name in the `probe_scores` table.
MAIN_METRICS = {
    "classification": "accuracy",
    "multilabel_classification": "accuracy",
    "regression": "kendalltau",
    "clustering": "v_measure",
    "pair_classification": "max_ap",
    "sts": "cosine_spearman",
    "reranking": "map_at_1000",
    "retrieval": "ndcg_at_10",
}
