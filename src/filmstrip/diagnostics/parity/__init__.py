"""`filmstrip parity`: the same input through two implementations or checkpoints, and where they part.

Four things are told apart at every step. *Total* is the difference of two whole runs. *Introduced* is what the step
itself adds: our step is given the reference's value as its input (same-input replay). Both are taken again in float64:
a difference that vanishes there was rounding, one that stays is a difference of equation or weights.
"""
