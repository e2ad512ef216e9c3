"""A run's directory: options, checkpoints, metrics, pictures, and who holds it."""
