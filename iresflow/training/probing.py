"""What a fresh classifier finds in a frozen representation.

The nuisance classifier of independence cross entropy is one half of a minimax problem that need
not have been solved. Whether the nuisance is free of the class is told by another one, trained
from scratch on what the network makes of the data when it moves no more.
"""

import torch
from torch import Tensor

from iresflow.models import InvertibleClassifier
from iresflow.models.parts.plain import integer
from iresflow.training.evaluation.information import Information, information_bound
from iresflow.training.fitting import fit
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.loop.classes import require_class_numbers
from iresflow.training.objectives.classification import CrossEntropy, class_numbers, predict
from iresflow.training.objectives.independence import nuisance_network

__all__ = ["latent_parts", "probe"]

BATCH = 500
"""Samples at a time."""

STEPS = 1500
"""Of the training of a fresh classifier: some seconds."""


@torch.no_grad()
def latent_parts(net: InvertibleClassifier, samples: Samples) -> tuple[Batch, Batch]:
    """The semantic and the nuisance parts of samples, with their labels.

    Errors: as `InvertibleClassifier.split`.
    """
    device = next(net.parameters()).device
    parts = [net.split(values.to(device)) for values in samples.values.split(BATCH)]
    semantic, nuisance = (torch.cat(part) for part in zip(*parts, strict=True))
    return Batch(semantic, samples.labels), Batch(nuisance, samples.labels)


def probe(
    train: Samples,
    test: Samples,
    classes: int,
    *,
    hidden: int = 256,
    steps: int | None = None,
    seed: int = 0,
    bar: bool = False,
) -> Information:
    """Trains a classifier on vectors from scratch, and says what it knows of others.

    It sees each entry standardised, trains with AdamW, and is the best of its training by a tenth
    of the samples that it holds out.

    Arguments:
        train: Vectors ``(N, D)`` with class numbers.
        test: Likewise, which it does not see.
        classes: Number of classes.
        hidden: Width of its two hidden layers.
        steps: Of 128 samples; `STEPS` by default.
        seed: Of its weights and of the order.
        bar: Whether to show a progress bar.

    Raises:
        ValueError: no labels, labels out of range, no vectors of one size, or a size that is none.
    """
    labels, steps = class_numbers(train), STEPS if steps is None else steps
    for samples in (train, test):
        require_class_numbers(class_numbers(samples), classes, "this probe")
        if samples.values.ndim != 2 or samples.values.shape[1:] != train.values.shape[1:]:
            raise ValueError(
                f"both sets are vectors (N, D) of one size, got {tuple(train.values.shape)} and "
                f"{tuple(test.values.shape)}"
            )
    spread, mean = torch.std_mean(train.values.double(), dim=0)
    spread = torch.where(spread > 0, spread, 1.0)

    def standardized(values: Tensor) -> Tensor:
        return ((values.double() - mean) / spread).to(torch.get_default_dtype())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = integer("hidden", hidden, 1)
        classifier = nuisance_network(train.values.shape[1], classes, width)
    classifier = classifier.to(train.values.device)
    fit(
        classifier,
        standardized(train.values),
        labels.to(train.values.device),
        objective=CrossEntropy(),
        seed=seed,
        bar=bar,
        steps=steps,
        batch_size=128,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-2,
        validation_samples=2000,
        log_every=steps,
    )
    return information_bound(predict(classifier, standardized(test.values)), class_numbers(test))
