"""What is computed: hidden states, pooling, views, metrics, probes. Pure functions, no ray."""
