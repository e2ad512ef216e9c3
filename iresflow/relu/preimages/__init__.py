"""What a layer throws away exactly: the sets of inputs with one output."""
