"""The passes compiled for the processor. Without this folder, PyTorch's operations take over."""
