"""The reference implementation, transformers, and where its modules hold our activations.

`reference` and `processors` are the only modules of the package that import transformers; `points` is a table of
names and imports nothing of it.
"""
