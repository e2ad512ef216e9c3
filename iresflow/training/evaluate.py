"""Evaluation of a trained model on a split: likelihood with its errors, and reconstruction."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from iresflow.bijections import Accuracy
from iresflow.data import Split
from iresflow.models import ImageFlow, VectorFlow
from iresflow.training.build import class_context
from iresflow.training.objectives import unit_of

__all__ = ["RECONSTRUCTED", "Evaluation", "Reconstruction", "evaluate", "reconstruct"]

RECONSTRUCTED = 1000
"""Samples of a split that are sent through the inverse for a report, at most."""


@final
@dataclass(frozen=True)
class Evaluation:
    """The score of a model on n samples; lower is better.

    Attributes:
        unit: ``bits/dim`` (images, an upper bound of the integers' by uniform dequantisation) or
            ``nats`` (vectors, minus the log-density).
        mean: The mean over the samples.
        standard_error: Of the mean, over samples, dequantisation noise and probes together.
        probe_error: Standard error of the mean from the probes alone; NaN with one probe.
        truncation_bound: Upper bound of the mean's truncation error.
        samples: n.
        seed: Of noise and probes; the same seed gives the same numbers.
    """

    unit: str
    mean: float
    standard_error: float
    probe_error: float
    truncation_bound: float
    samples: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.4f} {self.unit} +- {self.standard_error:.4f} (standard error over "
            f"{self.samples} samples; of which probes {self.probe_error:.1e}; truncation <= "
            f"{self.truncation_bound:.1e})"
        )

    def write(self, path: Path, **origin: str | int) -> None:
        """Writes the numbers as JSON, with what else is to be known of them; NaN as null."""
        numbers = {k: None if v != v else v for k, v in asdict(self).items()}
        path.write_text(json.dumps({**origin, **numbers}, indent=2) + "\n")


@final
@dataclass(frozen=True)
class Reconstruction:
    """How exactly data comes back through latent and inverse.

    Attributes:
        values: The reconstructed x, ``(B, *event)``.
        originals: The x that were sent.
        largest_error: The largest absolute difference of any entry, in units of x.
        steps: Branch evaluations for each sample, ``(B,)``.
        block_error: The largest certified error of any block's inverse, Euclidean.
        residual: The largest measured latent residual, Euclidean.
    """

    values: Tensor
    originals: Tensor
    largest_error: float
    steps: Tensor
    block_error: float
    residual: float


def evaluate(
    flow: ImageFlow | VectorFlow,
    split: Split,
    *,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Scores a model in eval mode on all samples of a split.

    Arguments:
        flow: The model.
        split: The samples.
        seed: Of dequantisation noise and probes.
        batch_size: Samples at a time.
        progress: Called with the number of samples done in each batch.
    """
    device = next(flow.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    scores, variances, bounds = [], [], []
    for first in range(0, len(split), batch_size):
        values, context = _batch(flow, split, first, batch_size)
        if isinstance(flow, ImageFlow):
            result = flow.bits_per_dim(values, context, generator=generator)
            scores.append(result.values)
            variances.append(result.probe_variance)
            bounds.append(result.truncation_bounds)
        else:
            likelihood = flow.likelihood(values, context, generator=generator)
            scores.append(-likelihood.log_prob)
            variances.append(likelihood.variance)
            bounds.append(likelihood.truncation_bound)
        progress(len(values))
    score = torch.cat(scores).double()
    return Evaluation(
        unit=unit_of(flow),
        mean=float(score.mean()),
        standard_error=float(score.std() / len(score) ** 0.5) if len(score) > 1 else float("nan"),
        probe_error=float(torch.cat(variances).double().sum().sqrt() / len(score)),
        truncation_bound=float(torch.cat(bounds).double().mean()),
        samples=len(score),
        seed=seed,
    )


def reconstruct(
    flow: ImageFlow | VectorFlow,
    split: Split,
    *,
    count: int,
    seed: int = 0,
    tol: float | None = None,
    batch_size: int = 250,
) -> Reconstruction:
    """Sends the first ``count`` samples of a split to the latent and back.

    Errors: as `Flow.invert`.
    """
    device = next(flow.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    originals, inverses = [], []
    count = min(count, len(split))
    for first in range(0, count, batch_size):
        x, context = _batch(flow, split, first, min(batch_size, count - first))
        if isinstance(flow, ImageFlow):
            x = flow.dequantize(x, generator)
        with torch.no_grad():
            z = flow.transform(x, context)
        originals.append(x)
        inverses.append(flow.invert(z, context, None if tol is None else Accuracy(tol)))
    x, values = torch.cat(originals), torch.cat([inverse.value for inverse in inverses])
    return Reconstruction(
        values=values,
        originals=x,
        largest_error=float((values - x).abs().max()),
        steps=torch.cat([inverse.steps for inverse in inverses]),
        block_error=max(float(inverse.block_error.max()) for inverse in inverses),
        residual=max(float(inverse.residual.max()) for inverse in inverses),
    )


def _batch(
    flow: ImageFlow | VectorFlow, split: Split, first: int, count: int
) -> tuple[Tensor, Tensor | None]:
    like = next(flow.parameters())
    values = split.values[first : first + count].to(like.device)
    labels = None if split.labels is None else split.labels[first : first + count]
    if not isinstance(flow, ImageFlow):
        values = values.to(like.dtype)
    return values, class_context(labels, flow.context_dim, like)
