"""The models that users import."""

from iresflow.models.bits import BitsPerDim
from iresflow.models.certificate import Certificate
from iresflow.models.densities import DiagonalNormal, UnitUniform
from iresflow.models.distribution import FlowDistribution, FlowTransform
from iresflow.models.flow import Flow
from iresflow.models.image import ImageFlow
from iresflow.models.inversion import FlowInverse
from iresflow.models.likelihood import Likelihood
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
