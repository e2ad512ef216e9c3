"""What acts of a layer's normalised weight: that alone, or that beside something else."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from iresflow.lipschitz.bounds.base import Bound
from iresflow.lipschitz.layers.activations import Activation

__all__ = ["Alone", "Bounds", "Form"]

Bounds = dict[tuple[float, float], Bound]
"""Certified bounds by the p-norms of domain and range."""


class Form(ABC):
    """How a layer acts, given a weight of bounded norm."""

    @abstractmethod
    def outputs(self, own: int) -> int:
        """Channels of what acts, where the weight has so many of its own."""

    @abstractmethod
    def scaled(self, scale: Tensor) -> Tensor:
        """What the raw weight is multiplied with, where its norm alone would have it ``scale``."""

    @abstractmethod
    def acting(self, weight: Tensor) -> Tensor:
        """What acts, from the scaled weight."""

    @abstractmethod
    def bounds(self, own: Bounds) -> Bounds:
        """Of what acts, from those of the scaled weight."""

    @abstractmethod
    def bounds_after(self, own: Bounds, activation: Activation | None) -> Bounds:
        """Of what acts after an activation, likewise."""


@final
class Alone(Form):
    """The weight itself."""

    def outputs(self, own: int) -> int:
        return own

    def scaled(self, scale: Tensor) -> Tensor:
        return scale

    def acting(self, weight: Tensor) -> Tensor:
        return weight

    def bounds(self, own: Bounds) -> Bounds:
        return own

    def bounds_after(self, own: Bounds, activation: Activation | None) -> Bounds:
        if activation is None:
            return own
        constants = {p: activation.lipschitz_in(p) for p, _ in own}
        return {
            (p, q): Bound(constants[p], constants[p], "").then(bound)
            for (p, q), bound in own.items()
        }
