"""Where the advice comes from: what published and own scores say about choosing a layer."""
