"""Inverse problems: images from incomplete and noisy linear measurements of them."""

from iresflow.inverse_problems.descent import ProjectedQuasiNewton
from iresflow.inverse_problems.domains import Domain
from iresflow.inverse_problems.estimation import MapEstimate, map_estimate
from iresflow.inverse_problems.flow_prior import FlowPrior
from iresflow.inverse_problems.learned import LearnedOperator
from iresflow.inverse_problems.objectives import Approximation, Reconstruction
from iresflow.inverse_problems.operators import (
    LinearOperator,
    average_pooling,
    blur,
    identity,
    masking,
)
from iresflow.inverse_problems.patch_prior import PatchPrior
from iresflow.inverse_problems.penalties import DivergencePenalty, LogDetPenalty
from iresflow.inverse_problems.potentials import Potential
from iresflow.inverse_problems.self_adjoint import SelfAdjoint
from iresflow.inverse_problems.variables import ImageVariable, LatentVariable, Variable

__all__ = [
    "Approximation",
    "DivergencePenalty",
    "Domain",
    "FlowPrior",
    "ImageVariable",
    "LatentVariable",
    "LearnedOperator",
    "LinearOperator",
    "LogDetPenalty",
    "MapEstimate",
    "PatchPrior",
    "Potential",
    "ProjectedQuasiNewton",
    "Reconstruction",
    "SelfAdjoint",
    "Variable",
    "average_pooling",
    "blur",
    "identity",
    "map_estimate",
    "masking",
]
