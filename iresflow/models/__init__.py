"""The models that users import."""

from iresflow.models.certificate import Certificate
from iresflow.models.densities import DiagonalNormal, UnitUniform
from iresflow.models.distribution import FlowDistribution, FlowTransform
from iresflow.models.flow import Flow, Likelihood
from iresflow.models.image import BitsPerDim, ImageFlow
from iresflow.models.inversion import FlowInverse
from iresflow.models.storage import StoredModel
from iresflow.models.vector import VectorFlow

__all__ = [
    "BitsPerDim",
    "Certificate",
    "DiagonalNormal",
    "Flow",
    "FlowDistribution",
    "FlowInverse",
    "FlowTransform",
    "ImageFlow",
    "Likelihood",
    "StoredModel",
    "UnitUniform",
    "VectorFlow",
]
