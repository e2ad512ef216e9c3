"""The density that an invertible classifier without padding gives its input."""

import copy

import torch
from torch import Tensor

from iresflow.models.classifiers.classifier import InvertibleClassifier
from iresflow.models.densities import DiagonalNormal
from iresflow.models.flow import Flow

__all__ = ["density_of"]


@torch.no_grad()
def density_of(net: InvertibleClassifier, x: Tensor) -> Flow:
    r"""A classifier's map as a flow, of a normal latent that has the moments of samples.

    Of all normal densities with independent entries it is the one that gives these samples the
    largest likelihood, so the optimum of the prior that `Hybrid` trains. What the flow gives is
    :math:`\log N(F(x); \beta, \gamma) + \log |\det J_F(x)|` in nats, in the units of x; it draws
    samples and knows the errors of its likelihoods as any flow does. It holds a copy of the map.

    Arguments:
        net: Without padding, in eval mode.
        x: Two samples or more, ``(N, *shape)``; images dequantised, as floats in [0, 1).

    Raises:
        ValueError: a padded network, one sample, integers, samples that the network refuses, or
            an entry of the latent that is equal for all of them.
    """
    if net.pad:
        raise ValueError(
            f"with pad={net.pad} channels of zeros x fills no volume and has no density: build "
            "the classifier with pad=0"
        )
    z = net.transform(x)
    if len(x) < 2 or not x.is_floating_point():
        raise ValueError(f"a density needs two samples in floats, got {len(x)} of {x.dtype}")
    deviation, mean = torch.std_mean(z.double(), dim=0, correction=0)
    if not bool((deviation > 0).all()):
        raise ValueError(
            f"{int((deviation == 0).sum())} entries of the latent are equal for all {len(x)} "
            "samples, and a normal density needs a deviation"
        )
    base = DiagonalNormal(net.base_dim)
    base.mean, base.log_std = mean.to(z), deviation.log().to(z)
    bijection, data_map = copy.deepcopy(net.bijection), copy.deepcopy(net.data_map)
    return Flow(bijection, base, net.shape, data_map=data_map).eval()
