"""What the constructors of models share: arguments as plain values, contexts, scales."""
