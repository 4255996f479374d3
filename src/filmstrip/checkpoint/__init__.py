"""Checkpoint directories: read, load, export. The only part that knows key names on disk."""
