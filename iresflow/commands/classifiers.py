"""What the verbs print of an invertible classifier."""

import math
from pathlib import Path

import torch
from torch import Tensor

from iresflow.bijections import dequantize
from iresflow.data import Dataset
from iresflow.models import Flow, ImageFlow, InvertibleClassifier
from iresflow.models.certified import CertifiedModel
from iresflow.models.classifiers.density import density_of
from iresflow.models.classifiers.read_outs import SimplifiedReadOut
from iresflow.models.likelihood import sample_stream
from iresflow.training.evaluation.classification import ITERATIONS, classification_of, inverted
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.contexts import batch_of
from iresflow.training.probing import latent_parts, probe

__all__ = [
    "report_certificate",
    "report_classes",
    "report_classifier",
    "report_density",
    "report_nuisance",
]

CLASSIFIED = 1000
"""Samples that a flow classifies, at most."""

INVERTED = 250
"""Samples that are sent through the inverse, at most."""

FITTED = 2000
"""Training samples whose latents' moments make a density, at most."""

PROBED = 10_000
"""Training samples that a fresh nuisance classifier sees, at most."""


def report_classifier(
    net: InvertibleClassifier, samples: Samples, file: Path, **origin: str | int
) -> None:
    """Scores a classifier, prints it and writes it to a file.

    Arguments:
        net: In eval mode.
        samples: With labels.
        file: For the numbers, as JSON.
        origin: What else is to be known of them; ``split`` is the split's name.
    """
    score = classification_of(net, samples)
    score.write(file, **origin)
    print(f"{origin.get('split', 'test'):<11} {score}", flush=True)
    report_certificate(net)
    back = inverted(net, samples.values[:INVERTED])
    iterated = f"by {ITERATIONS} fixed-point iterations, nothing certified"
    how = "certified" if back.certified else iterated
    print(
        f"inverse     largest reconstruction error {back.largest_error:.1e} in x over "
        f"{back.samples} samples ({how}), measured latent residual {back.residual:.1e}"
        + ("" if back.certified else f", {100 * back.converged:.0f} % came back"),
        flush=True,
    )


def report_certificate(model: CertifiedModel) -> None:
    """Prints the largest bound of any block."""
    certificate = model.certify()
    verdict = "invertible" if certificate else "NOT certified"
    print(
        f"certified   largest Lipschitz bound of a block {certificate.largest:.6f}: {verdict}",
        flush=True,
    )


def report_nuisance(net: InvertibleClassifier, dataset: Dataset, split: Samples) -> None:
    """Prints what a fresh classifier finds in each part of the latent; of no pooled read-out."""
    if not isinstance(net.read_out, SimplifiedReadOut):
        return
    train = Batch.of(dataset.train, slice(PROBED))
    seen, asked = latent_parts(net, train), latent_parts(net, split)
    for name, mine, theirs in zip(("semantic", "nuisance"), seen, asked, strict=True):
        found = probe(mine, theirs, net.classes)
        known = f"{found.nats:.3f} +- {found.standard_error:.3f} of {found.entropy:.3f} nats"
        print(
            f"{name:<11} a fresh classifier on that part alone: accuracy "
            f"{100 * found.accuracy:.2f} % +- {100 * found.accuracy_error:.2f}, which knows at "
            f"least {known} of the class",
            flush=True,
        )


@torch.no_grad()
def report_density(net: InvertibleClassifier, dataset: Dataset, split: Samples) -> None:
    """Prints how likely samples are under a normal latent; of a certified map without padding."""
    if net.pad or not net.certify():
        return
    flow = density_of(net, _floats(net, Batch.of(dataset.train, slice(FITTED)).values))
    values = _floats(net, Batch.of(split, slice(INVERTED)).values)
    log_prob = flow.likelihood(values, seed=0).log_prob.double()
    unit, cost = "nats", -log_prob
    if len(net.shape) == 3:
        unit, cost = "bits/dim", cost / (net.base_dim * math.log(2)) + math.log2(net.levels)
    error = float(cost.std()) / math.sqrt(len(cost)) if len(cost) > 1 else math.nan
    print(
        f"density     {float(cost.mean()):.4f} {unit} +- {error:.4f} over {len(cost)} samples, by "
        "a normal latent with the moments of training samples",
        flush=True,
    )


def _floats(net: InvertibleClassifier, values: Tensor) -> Tensor:
    """Samples on the network's device, integer images with noise that repeats."""
    values = values.to(next(net.parameters()).device)
    if values.is_floating_point():
        return values
    noise = sample_stream((values,), None, 0)
    return dequantize(values, net.levels, dtype=next(net.parameters()).dtype, generator=noise)


def report_classes(flow: Flow, split: Samples) -> None:
    """Prints how well a flow given the class classifies by Bayes' rule, and what stays open."""
    samples = Batch.of(split, slice(CLASSIFIED))
    if samples.labels is None:
        return
    values, _ = batch_of(flow, samples, 0, len(samples))
    if isinstance(flow, ImageFlow):
        values = flow.dequantize(values, sample_stream((values,), None, 0))
    found = flow.classify(values, seed=0)
    right = (found.classes == samples.labels.to(found.classes.device)).double()
    error, count = 1 - float(right.mean()), len(right)
    print(
        f"classes     by Bayes' rule: error {100 * error:.2f} % +- "
        f"{100 * math.sqrt(error * (1 - error) / count):.2f} ({count} samples); the errors of the "
        f"likelihoods leave {100 * float((~found.decided).double().mean()):.1f} % open at level "
        f"{found.level}",
        flush=True,
    )
