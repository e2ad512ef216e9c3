"""Invertible maps."""

from iresflow.bijections.affine import ActNorm, Standardize
from iresflow.bijections.base import Bijection, Composition, LogDet, StreamedLogDet
from iresflow.bijections.branch_block import BranchBlock
from iresflow.bijections.channels import ChannelMeans, FirstChannels
from iresflow.bijections.conditional_prior import ConditionalPrior
from iresflow.bijections.decorrelate import Decorrelate
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.bijections.kinds import BLOCKS, block_named
from iresflow.bijections.monotone import MonotoneBlock
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
    "BLOCKS",
    "Accuracy",
    "ActNorm",
    "Bijection",
    "BranchBlock",
    "Center",
    "ChannelMeans",
    "Composition",
    "ConditionalPrior",
    "Decorrelate",
    "FirstChannels",
    "Inverse",
    "LogDet",
    "Logit",
    "MonotoneBlock",
    "MultiScale",
    "ResidualBlock",
    "Squeeze",
    "Standardize",
    "StreamedLogDet",
    "block_named",
    "check_levels",
    "dequantize",
    "quantize",
    "with_noise",
]
