"""Training: numbered batches of drawn clips, an optimisation loop, and the stages of the embedded model."""
