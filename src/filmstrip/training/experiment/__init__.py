"""Fusion experiments: the same recipe with other aggregations, at equal compute, as one table and one picture."""
