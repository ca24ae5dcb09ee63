"""Tests of LayerRank."""

import os

# Before anything imports huggingface_hub, which reads it once: no test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
