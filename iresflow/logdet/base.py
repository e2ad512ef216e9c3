"""What an estimator of a log-determinant takes and gives."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from iresflow.derivatives import first_order
from iresflow.errors import DerivativeError, NotContractiveError
from iresflow.linearization import Linearization
from iresflow.logdet.cayley import Cayley, Negated, twins
from iresflow.logdet.probes import squared_standard_error
from iresflow.streams import Stream
from iresflow.tensors import transformed

__all__ = ["EXPANSION", "Kind", "LogDetEstimate", "LogDetEstimator"]

EXPANSION = 1.01
"""A product that makes a vector longer by more than this factor proves that J is no contraction.
The hundredth is above the rounding of a product, in bfloat16 too."""

Kind = Literal["exact", "biased", "unbiased"]
"""What an estimator promises of the mean of its values over probes and series lengths."""


@final
@dataclass(frozen=True)
class LogDetEstimate:
    r"""An estimate of :math:`\log\det(I + J)` for each sample of a batch.

    Attributes:
        value: ``(B,)`` nats, without a graph. The only number that may be logged or summed into a
            likelihood. NaN where the products have proven that :math:`\|J\| > 1`: a series then
            need not converge, and its number would only look fine.
        surrogate: ``(B,)``, whose *gradient* estimates that of the log-determinant. Its own value
            means nothing, and with gradients off it need not be computed. Derivatives of the
            gradient are refused, but for those of `Exact`.
        variance: ``(B,)`` squared nats: the squared standard error of `value` over its probes.
            NaN where the probes tell nothing of it, as a single one, zero where there are none.
        truncation: ``(B,)`` nats, upper bound of what truncation changed in this very estimate,
            given its probes and products without rounding, which comes on top (about 1e-6 of the
            log-determinant's scale in float32). Infinite where the linearization has no certified
            Lipschitz bound, zero where nothing is cut off.
        gradient_truncation: ``(B,)``, upper bound of the distance of the surrogate's left vectors
            from :math:`(I + J)^{-\top} v`, relative to :math:`\|v\|`, the largest over probes.
            Zero and infinite as above.
        products: ``(B,)``, products with J or its transpose that the value took, for each probe.
        degrees: Degrees of freedom of `variance`, which K probes estimate with K - 1; infinite
            where it is known.
        terms: ``(K, B)`` nats, what each probe gives, whose mean is `value`; None where there are
            no probes, or where nobody keeps their terms. Estimates by the same probes are compared
            probe by probe.
    """

    value: Tensor
    surrogate: Tensor
    variance: Tensor
    truncation: Tensor
    gradient_truncation: Tensor
    products: Tensor
    degrees: float = math.inf
    terms: Tensor | None = None

    @staticmethod
    def of_probes(
        terms: Tensor,
        *,
        truncation: Tensor,
        gradient_truncation: Tensor,
        products: Tensor,
        surrogate: Tensor | None = None,
    ) -> "LogDetEstimate":
        """The mean of terms ``(K, B)`` of independent probes, with their spread.

        Arguments:
            terms: One of each probe.
            truncation, gradient_truncation, products: Of the mean.
            surrogate: None where gradients are off.
        """
        value = terms.mean(0)
        return LogDetEstimate(
            value=value,
            surrogate=value if surrogate is None else surrogate,
            variance=squared_standard_error(terms),
            truncation=truncation,
            gradient_truncation=gradient_truncation,
            products=products,
            degrees=len(terms) - 1,
            terms=terms,
        )

    def minus(self, other: "LogDetEstimate") -> "LogDetEstimate":
        """The difference to an estimate of another Jacobian by the same probes.

        Its error is told by the differences of what the probes give, one by one: what is common
        to both cancels. Where an estimator keeps no terms, the standard errors add up, which is
        an upper bound: a standard error is a seminorm of what the probes give.
        """
        variance = (self.variance.sqrt() + other.variance.sqrt()).square()
        terms = None
        if self.terms is not None and other.terms is not None:
            terms = self.terms - other.terms
            variance = torch.where(variance.isnan(), variance, squared_standard_error(terms))
        return LogDetEstimate(
            self.value - other.value,
            self.surrogate - other.surrogate,
            variance=variance,
            truncation=self.truncation + other.truncation,
            gradient_truncation=torch.maximum(self.gradient_truncation, other.gradient_truncation),
            products=self.products + other.products,
            degrees=min(self.degrees, other.degrees),
            terms=terms,
        )

    @property
    def log_det(self) -> Tensor:
        """`value` in the forward pass, the gradient of `surrogate` in the backward pass."""
        if self.surrogate is self.value or not self.surrogate.requires_grad:
            return self.value
        return self.value + (self.surrogate - self.surrogate.detach())


class LogDetEstimator(ABC):
    """Estimates :math:`\\log\\det(I + J)` from products with J.

    A subclass is a frozen dataclass of its settings, so it can be compared, printed and stored.
    """

    kind: ClassVar[Kind]

    @final
    def __call__(
        self, linearization: Linearization, generator: Stream | None = None
    ) -> LogDetEstimate:
        """The estimate at the linearization's points.

        Arguments:
            linearization: g at points ``(B, *event)``.
            generator: Draws the probes and the lengths of random series.

        Raises:
            NotContractiveError: the linearization's certified Lipschitz bound is not below 1.
            DerivativeError: inside a transform of ``torch.func``, but for `Exact`.
        """
        bound = linearization.lipschitz
        if bound is not None and not math.isfinite(bound):
            raise NotContractiveError(
                "the branch has no Lipschitz bound: its parameters hold NaN or infinity"
            )
        if bound is not None and not bound < 1:
            raise NotContractiveError(
                f"the branch has a certified Lipschitz bound of {bound:.4g}, not below 1, so its "
                "block need not be invertible and has no log-determinant to estimate. Call "
                "the model's enforce(), which rescales the layers"
            )
        estimator = self.at(linearization)
        exact = estimator.kind == "exact"
        if transformed() and not exact:
            raise DerivativeError
        if isinstance(linearization, Cayley):
            estimate = estimator._difference(linearization.inner, generator)
        else:
            estimate = estimator.estimate(linearization, generator)
        if exact:
            return estimate
        # The vectors that a surrogate holds constant depend on x and on the parameters too.
        return replace(estimate, surrogate=first_order(estimate.surrogate))

    @final
    def _difference(self, g: Linearization, generator: Stream | None) -> LogDetEstimate:
        """Of log det(I - J) - log det(I + J), with the same probes and lengths for both."""
        first, second = twins(generator, g.point.device)
        minus, plus = self.estimate(Negated(g), first), self.estimate(g, second)
        return minus.minus(plus)

    def at(self, linearization: Linearization) -> "LogDetEstimator":
        """The estimator at a linearization, where that depends on it."""
        return self

    @abstractmethod
    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        """The estimate, for a branch that is not known to be no contraction."""
