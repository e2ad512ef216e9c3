"""Iris and images, as the experiment on frames trains on them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from experiments.relu.base import Samples

__all__ = ["SCALINGS", "iris_samples"]

IRIS_TEST = 50
TINY = 1e-12
"""In place of the norm of an image without a bright pixel."""

Restore = Callable[[Tensor], Tensor]
"""From the first test points as they are trained on ``(B, n)`` back to pixels in [0, 1]."""


def standardised(samples: Samples) -> tuple[Samples, Restore]:
    """Images with mean 0 and deviation 1 over all training pixels."""
    mean, deviation = float(samples.train.mean()), float(samples.train.std())
    train, test = ((part - mean) / deviation for part in (samples.train, samples.test))
    return replace(samples, train=train, test=test), lambda x: deviation * x + mean


def on_the_sphere(samples: Samples) -> tuple[Samples, Restore]:
    """Images of norm 1 each."""
    train, test = samples.train.flatten(1), samples.test.flatten(1)
    norms = test.norm(dim=1, keepdim=True)
    train = train / train.norm(dim=1, keepdim=True).clamp(min=TINY)
    scaled = replace(samples, train=train, test=test / norms.clamp(min=TINY))
    return scaled, lambda x: x * norms[: len(x)]


SCALINGS: dict[str, Callable[[Samples], tuple[Samples, Restore]]] = {
    "deviation": standardised,
    "norm": on_the_sphere,
}


def iris_samples(seed: int, dimensions: int) -> Samples:
    """Iris, standardised, on its first principal components; 50 of 150 flowers to test on."""
    from sklearn.datasets import load_iris  # slow to import, for one of the data sets

    bunch = load_iris()
    order = np.random.default_rng(seed).permutation(len(bunch.data))
    values, labels = bunch.data[order], torch.from_numpy(bunch.target[order])
    train = values[IRIS_TEST:]
    values = (values - train.mean(0)) / train.std(0)
    _, _, axes = np.linalg.svd(values[IRIS_TEST:], full_matrices=False)
    points = torch.from_numpy(values @ axes[:dimensions].T).float()
    return Samples(
        "iris", points[IRIS_TEST:], labels[IRIS_TEST:], points[:IRIS_TEST], labels[:IRIS_TEST],
        tuple(bunch.target_names),
    )  # fmt: skip
