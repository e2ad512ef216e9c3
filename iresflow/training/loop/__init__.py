"""The one training loop, its steps and its processes."""
