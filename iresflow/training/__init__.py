"""Training of flows: configuration, loop, checkpoints, evaluation."""
