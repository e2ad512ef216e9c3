"""What is asked of class numbers before anything is trained on them or counted by them."""

from warnings import warn

import torch
from torch import Tensor

from iresflow.errors import callers_level

__all__ = ["require_class_numbers", "require_classes"]


def require_class_numbers(labels: Tensor, classes: int, owner: str) -> None:
    """Checks that labels ``(N,)`` are integers 0 .. classes - 1.

    Arguments:
        labels: N at least 1.
        classes: Number of classes.
        owner: Whose classes they are, such as ``this classifier``.

    Raises:
        ValueError: they are none.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"class numbers are integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long()  # of unsigned integers, torch knows no extremes
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"class numbers of {owner} are 0 .. {classes - 1}, got {int(labels.min())} .. "
            f"{int(labels.max())}"
        )


def require_classes(labels: Tensor, classes: int) -> None:
    """Checks that class numbers ``(N,)`` of training samples tell classes apart.

    Warns:
        UserWarning: a class has no sample.

    Raises:
        ValueError: all are of one class.
    """
    counts = torch.bincount(labels, minlength=classes)
    missing = (counts == 0).nonzero().flatten().tolist()
    if len(missing) == classes - 1:
        raise ValueError(
            f"all {len(labels)} samples are of class {int(labels[0])}: a classifier learns from "
            "two classes at least"
        )
    if missing:
        names = ", ".join(map(str, missing[:10]))
        warn(
            f"no training sample is of class {names}: what it looks like is not learnt",
            stacklevel=callers_level(),
        )
