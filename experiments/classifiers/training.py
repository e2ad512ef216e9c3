"""How the networks of these experiments are trained: by the package's loop, once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iresflow import fit
from iresflow.data import Split
from iresflow.data.images.augment import Augmentation
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective

__all__ = ["error_of", "labelled", "train_once"]


def labelled(split: Split, count: int | None = None) -> Batch:
    """The first samples of a split with their class numbers.

    Raises:
        ValueError: it has no labels.
    """
    if split.labels is None:
        raise ValueError("these experiments need labels, and the data set has none")
    return Batch(split.values[:count], split.labels[:count].long())


def train_once(
    model: nn.Module,
    train: Batch,
    held: Batch | None,
    where: Path,
    *,
    objective: Objective | None = None,
    augment: Sequence[Augmentation] = (),
    seed: int = 0,
    **options: Any,  # noqa: ANN401 (of `fit`)
) -> list[dict[str, float | str]]:
    """Trains a model in place, or takes up where it was in a directory; returns its history.

    Arguments:
        model: New, with the same weights in each call.
        train: The samples.
        held: Those to choose by; None for none.
        where: The training's own directory.
        objective: What is minimised; None for what the model is made for.
        augment: Random changes of training images.
        seed: Of the order.
        options: Of training.
    """
    known = (where / "fit.yaml").is_file()
    print(f"{'goes on in' if known else 'trains in':<11} {where}", flush=True)
    fitted = fit(
        model,
        train.values,
        train.labels,
        validation=None if held is None else (held.values, held.labels),
        objective=objective,
        augment=tuple(augment),
        run=where,
        resume=known,
        seed=seed,
        title=where.name,
        **options,
    )
    return fitted.history


def error_of(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of wrong classes and its standard error."""
    wrong = float((logits.argmax(1) != labels.to(logits.device)).double().mean())
    return wrong, (wrong * (1 - wrong) / len(labels)) ** 0.5
