"""Linear layers with a norm limit, and what they are made of: paddings, activations, norms."""
