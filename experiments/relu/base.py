"""What all experiments take and give: labelled samples, and a report of tables and figures."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from iresflow.commands.report import Report

__all__ = ["Report", "Samples"]


@final
@dataclass(frozen=True, eq=False)
class Samples:
    """The data of an experiment.

    Attributes:
        name: Of the data set.
        train: Inputs ``(N, *event)`` as float32; images in [0, 1].
        train_labels: Class numbers ``(N,)`` as int64, or None.
        test: Likewise.
        test_labels: Likewise.
        classes: Name of each class.
    """

    name: str
    train: Tensor
    train_labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None
    classes: tuple[str, ...] = ()

    def labels(self) -> tuple[Tensor, Tensor]:
        """The labels of both parts.

        Raises:
            ValueError: there are none.
        """
        if self.train_labels is None or self.test_labels is None:
            raise ValueError(f"{self.name} has no labels, and a classifier needs them")
        return self.train_labels, self.test_labels
