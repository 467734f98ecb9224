"""The graph passes: one rewrite a file, in the order that `pipeline.py` gives them."""
