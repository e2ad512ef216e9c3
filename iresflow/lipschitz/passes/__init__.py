"""How a branch is computed, with its derivatives: by PyTorch's operations, or natively."""
