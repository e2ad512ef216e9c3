"""Inverse problems: images from incomplete and noisy linear measurements of them."""

from iresflow.inverse_problems.learned import LearnedOperator
from iresflow.inverse_problems.objectives import Approximation, Reconstruction
from iresflow.inverse_problems.operators import (
    LinearOperator,
    average_pooling,
    blur,
    identity,
    masking,
)
from iresflow.inverse_problems.penalties import DivergencePenalty, LogDetPenalty
from iresflow.inverse_problems.self_adjoint import SelfAdjoint

__all__ = [
    "Approximation",
    "DivergencePenalty",
    "LearnedOperator",
    "LinearOperator",
    "LogDetPenalty",
    "Reconstruction",
    "SelfAdjoint",
    "average_pooling",
    "blur",
    "identity",
    "masking",
]
