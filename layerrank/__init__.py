"""LayerRank: which layer of a language model to use.

Everything of ours is imported below this name, so that packages called `jobs` or `storage` may
stand beside it. In the checkout the three packages lie at the top and are links in this folder.
"""
