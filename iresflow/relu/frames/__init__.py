"""When one ReLU layer keeps its input, and how to read it off."""
