"""How samples become what a model takes: told by the data that it was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
from torch import Tensor

from iresflow.data.base import Dataset, Scaling

__all__ = ["Reading"]


@final
@dataclass(frozen=True)
class Reading:
    """How files are read for a trained model, so that they mean what its training data did.

    Arguments:
        columns: Names of the columns that are modelled; empty where they are not known.
        offset: What is subtracted from each of them; empty for nothing.
        contexts: Names of the columns of contexts; empty where there are none.
        scaling: How contexts are standardised, or ``None``.
        classes: Names of the classes in the order of their numbers; empty where not known.
        bits: With how many bits grey values of more than 8 bits are read; ``None`` for all 16.
        resize: Whether image files of any size are resized and cropped, and converted to the
            model's channels. Otherwise they have its size and its channels, or are refused.
    """

    columns: tuple[str, ...] = ()
    offset: tuple[float, ...] = ()
    contexts: tuple[str, ...] = ()
    scaling: Scaling | None = None
    classes: tuple[str, ...] = ()
    bits: int | None = None
    resize: bool = False

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """What a data set tells: all but the bits, and whether its images were resized."""
        return cls(
            dataset.columns, dataset.offset, dataset.contexts, dataset.scaling, dataset.classes
        )

    def rows(self, x: Tensor, known: np.ndarray | None) -> np.ndarray:
        """Vectors in the units of the data, after the columns of their contexts.

        Arguments:
            x: ``(B, D)``.
            known: The contexts ``(B, C)``, as the data have them; or ``None``.
        """
        rows = x.double().cpu().numpy() + np.array(self.offset or 0.0)
        return rows if known is None else np.column_stack([known, rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `from_dict`."""
        scaling = self.scaling
        return {
            "columns": list(self.columns),
            "offset": list(self.offset),
            "contexts": list(self.contexts),
            "scaling": scaling and {"mean": [*scaling.mean], "deviation": [*scaling.deviation]},
            "classes": list(self.classes),
            "bits": self.bits,
            "resize": self.resize,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        scaling = values["scaling"]
        return cls(
            columns=tuple(values["columns"]),
            offset=tuple(values["offset"]),
            contexts=tuple(values["contexts"]),
            scaling=scaling and Scaling(tuple(scaling["mean"]), tuple(scaling["deviation"])),
            classes=tuple(values["classes"]),
            bits=values["bits"],
            resize=bool(values["resize"]),
        )
