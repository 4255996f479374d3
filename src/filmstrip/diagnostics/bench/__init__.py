"""`filmstrip bench`: this program and its peers on the same weights, in turn, beside what the machine can do.

Each peer is a process of its own (`worker`) that waits while the others work, so all meet the same machine.
"""
