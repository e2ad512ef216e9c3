"""How good an invertible classifier is on a split, and how exactly it comes back."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.models import InvertibleClassifier, iterate_inverse
from iresflow.training.loop.batches import Samples
from iresflow.training.objectives.classification import class_numbers, predict, score_of

__all__ = ["ITERATIONS", "Classification", "Inverted", "classification_of", "inverted"]

BATCH = 250
"""Samples at a time."""

ITERATIONS = 100
"""Fixed-point iterations of an inverse of which nothing is certified."""


@final
@dataclass(frozen=True)
class Classification:
    """The score of a classifier on n samples.

    Attributes:
        error: Share of samples whose largest logit is another class'.
        error_error: Its standard error as an estimate for the source of the samples.
        cross_entropy: Mean, in nats.
        standard_error: Of that.
        radius: Median of the certified radii, in the units of x, over the samples that are
            classified rightly; NaN where there is none.
        largest_radius: The largest of them.
        samples: n.
    """

    error: float
    error_error: float
    cross_entropy: float
    standard_error: float
    radius: float
    largest_radius: float
    samples: int

    def __str__(self) -> str:
        return (
            f"error {100 * self.error:.2f} % +- {100 * self.error_error:.2f}, cross entropy "
            f"{self.cross_entropy:.4f} +- {self.standard_error:.4f} nats, {self.samples} samples; "
            f"certified radius {self.radius:.1e} in the median, at most {self.largest_radius:.1e}"
        )

    def write(self, path: Path, **origin: str | int) -> None:
        """Writes the numbers as JSON, with what else is to be known of them; NaN as null."""
        numbers = {key: None if value != value else value for key, value in asdict(self).items()}
        path.write_text(json.dumps({**origin, **numbers}, indent=2) + "\n")


@torch.no_grad()
@full_precision()
def classification_of(net: InvertibleClassifier, split: Samples) -> Classification:
    """Scores a classifier in eval mode on all samples of a split.

    Raises:
        ValueError: the samples have no labels.
        NonFiniteError: a logit is NaN.
    """
    logits, labels = predict(net, split.values, BATCH), class_numbers(split)
    score, labels = score_of(logits, labels), labels.to(logits.device)
    right = logits.argmax(1) == labels
    device = logits.device
    radii = [net.certified_radius(part.to(device)) for part in split.values.split(BATCH)]
    radii_right = torch.cat(radii)[right]
    error, count = 1 - float(right.double().mean()), len(labels)
    return Classification(
        error,
        math.sqrt(error * (1 - error) / count),
        score.value,
        score.logged["standard_error"],
        float(radii_right.median()) if len(radii_right) else math.nan,
        float(radii_right.max()) if len(radii_right) else math.nan,
        count,
    )


@final
@dataclass(frozen=True)
class Inverted:
    """What came back from the latents of n samples.

    Attributes:
        largest_error: The largest absolute difference of any entry, in units of x.
        mean_error: The mean Euclidean distance of a sample.
        residual: The largest measured distance of a latent from the one that was inverted.
        converged: Share of samples that came back at all; 1 where the inverse is certified.
        certified: Whether it is.
        samples: n.
    """

    largest_error: float
    mean_error: float
    residual: float
    converged: float
    certified: bool
    samples: int


@torch.no_grad()
@full_precision()
def inverted(net: InvertibleClassifier, values: Tensor) -> Inverted:
    """Sends samples ``(N, *shape)`` to the latent and back.

    By the certified inverse; by `ITERATIONS` in each block where the network has none.

    Arguments:
        net: In eval mode.
        values: Floats, or integer images.
    """
    certified, device = bool(net.certify()), next(net.parameters()).device
    errors, distances, residuals, came_back = [], [], [], []
    for part in values.split(BATCH):
        x = part.to(device)
        x = x if x.is_floating_point() else net.prepare(x)
        z = net.transform(x)
        if certified:
            inverse = net.invert(z)
            value, residual = inverse.value, inverse.padded.residual
            converged = torch.ones_like(residual)
        else:
            tried = iterate_inverse(net, z, ITERATIONS)
            value, residual = tried.value[:, : x.shape[1]], tried.residual
            converged = tried.converged.double()
        difference = (value.double() - x.double()).flatten(1).nan_to_num(nan=math.inf)
        errors.append(difference.abs().amax(1))
        distances.append(difference.norm(dim=1))
        residuals.append(residual)
        came_back.append(converged)
    return Inverted(
        float(torch.cat(errors).max()),
        float(torch.cat(distances).mean()),
        float(torch.cat(residuals).max()),
        float(torch.cat(came_back).mean()),
        certified,
        len(values),
    )
