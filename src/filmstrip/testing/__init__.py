"""Helpers for tests: tiny checkpoints and the reference implementation. Nothing in the package imports them."""
