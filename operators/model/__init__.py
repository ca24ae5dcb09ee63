"""Every layer of a model: load, tokenise, encode, pool, cut, and count its cost."""
