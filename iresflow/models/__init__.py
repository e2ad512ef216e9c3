"""The models that users import."""

from iresflow.models.bits import BitsPerDim
from iresflow.models.certificates.certificate import Certificate
from iresflow.models.classifiers.classifier import InvertibleClassifier
from iresflow.models.classifiers.density import density_of
from iresflow.models.classifiers.metamers import ClassifierInverse, Metamers
from iresflow.models.densities import DiagonalNormal, StudentT, UnitUniform
from iresflow.models.distribution import FlowDistribution, FlowTransform
from iresflow.models.flow import Flow
from iresflow.models.generative import ClassProbabilities
from iresflow.models.image import ImageFlow
from iresflow.models.inversion import FlowInverse
from iresflow.models.iteration import IteratedInverse, iterate_inverse
from iresflow.models.likelihood import Likelihood
from iresflow.models.storage import StoredModel
from iresflow.models.vector import VectorFlow

__all__ = [
    "BitsPerDim",
    "Certificate",
    "ClassProbabilities",
    "ClassifierInverse",
    "DiagonalNormal",
    "Flow",
    "FlowDistribution",
    "FlowInverse",
    "FlowTransform",
    "ImageFlow",
    "InvertibleClassifier",
    "IteratedInverse",
    "Likelihood",
    "Metamers",
    "StoredModel",
    "StudentT",
    "UnitUniform",
    "VectorFlow",
    "density_of",
    "iterate_inverse",
]
