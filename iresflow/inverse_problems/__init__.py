"""Inverse problems: images from incomplete and noisy linear measurements of them."""

from iresflow.inverse_problems.operators import (
    LinearOperator,
    average_pooling,
    blur,
    identity,
    masking,
)

__all__ = ["LinearOperator", "average_pooling", "blur", "identity", "masking"]
