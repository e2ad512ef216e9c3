"""One training loop for all models: objectives, checkpoints, evaluation, and `fit`."""
