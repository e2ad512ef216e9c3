"""Series products in a narrow type of float, where the hardware is fast in it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.linearization import Jacobian, Linearization
from iresflow.logdet.base import Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.random_series import RandomSeries
from iresflow.logdet.series import PowerSeries
from iresflow.streams import Stream

__all__ = ["ReducedPrecision"]


@final
@dataclass(frozen=True)
class ReducedPrecision(LogDetEstimator):
    r"""An estimator whose vector-Jacobian products are computed in a narrow type of float.

    For training. The first product of a series, :math:`J v`, and the gradient's own passes stay
    in the type of the model, and so does every sum; the products with :math:`J^\top` carry the
    narrow type's rounding, so no truncation bound is proven.

    Krylov subspaces lose the relation that they are built on with so few digits (a gradient is off
    by five times as much as a series'), so they are refused.

    Arguments:
        estimator: `PowerSeries` or `RandomSeries`.
        dtype: The narrow type, ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        ValueError: another estimator or type.
    """

    estimator: LogDetEstimator
    dtype: torch.dtype = torch.bfloat16
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, PowerSeries | RandomSeries):
            raise ValueError(
                "reduced precision is for PowerSeries and RandomSeries, got "
                f"{type(self.estimator).__name__}"
            )
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {self.dtype}")

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        return self.estimator.estimate(_Reduced(linearization, self.dtype), generator)


@final
class _Reduced(Linearization):
    """A linearization whose `vjp` runs in a narrow type."""

    lipschitz = None  # so that no estimator proves anything from products that are rounded so

    def __init__(self, linearization: Linearization, dtype: torch.dtype) -> None:
        self.point = linearization.point
        self._linearization = linearization
        self._products = _ReducedProducts(linearization, linearization.reduced(dtype), dtype)

    @property
    def value(self) -> Tensor:
        return self._linearization.value

    def vjp(self, u: Tensor) -> Tensor:
        return self._products.vjp(u)

    def jvp(self, v: Tensor) -> Tensor:
        return self._linearization.jvp(v)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        return self._linearization.bilinear(w, v)

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        return self._linearization.evaluate(x, *leaves)

    def rows(self, index: Tensor) -> Jacobian:
        return self._products.rows(index)


@final
class _ReducedProducts(Jacobian):
    def __init__(self, wide: Jacobian, narrow: Jacobian, dtype: torch.dtype) -> None:
        self._wide = wide
        self._narrow = narrow
        self._dtype = dtype

    def vjp(self, u: Tensor) -> Tensor:
        return self._narrow.vjp(u.to(self._dtype)).to(u.dtype)

    def jvp(self, v: Tensor) -> Tensor:
        return self._wide.jvp(v)

    def rows(self, index: Tensor) -> Jacobian:
        narrow = self._narrow.rows(index)
        return _ReducedProducts(self._wide.rows(index), narrow, self._dtype)
