"""What a checkpoint is, whether it is whole, whether it computes what another does, and what it costs to run."""
