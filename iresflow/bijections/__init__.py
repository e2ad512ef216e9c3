"""Invertible maps."""

from iresflow.bijections.affine import ActNorm, Standardize
from iresflow.bijections.base import Accuracy, Bijection, Composition, Inverse, LogDet
from iresflow.bijections.channels import ChannelMeans, FirstChannels
from iresflow.bijections.conditional_prior import ConditionalPrior
from iresflow.bijections.pixels import (
    Center,
    Logit,
    check_levels,
    dequantize,
    quantize,
    with_noise,
)
from iresflow.bijections.reshape import MultiScale, Squeeze
from iresflow.bijections.residual import ResidualBlock

__all__ = [
    "Accuracy",
    "ActNorm",
    "Bijection",
    "Center",
    "ChannelMeans",
    "Composition",
    "ConditionalPrior",
    "FirstChannels",
    "Inverse",
    "LogDet",
    "Logit",
    "MultiScale",
    "ResidualBlock",
    "Squeeze",
    "Standardize",
    "check_levels",
    "dequantize",
    "quantize",
    "with_noise",
]
