"""What a search for an image moves: the image itself, or the latent of a flow."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from iresflow.inverse_problems.domains import Domain
from iresflow.inverse_problems.flow_prior import FlowPrior
from iresflow.inverse_problems.potentials import Potential

__all__ = ["ImageVariable", "LatentVariable", "Variable"]


class Variable(ABC):
    """Coordinates of images, and a negative log-density in them."""

    @abstractmethod
    def of_images(self, x: Tensor) -> Tensor:
        """The coordinates of images ``(B, C, H, W)``, without a graph."""

    @abstractmethod
    def images(self, u: Tensor) -> Tensor:
        """The images at coordinates, differentiable."""

    @abstractmethod
    def negative_log_density(self, u: Tensor) -> Tensor:
        """``(B,)`` nats, of the density of the coordinates, differentiable."""

    @abstractmethod
    def project(self, u: Tensor) -> Tensor:
        """The nearest coordinates that the search may visit."""


@final
class ImageVariable(Variable):
    """The image itself: the search finds a mode of the posterior density of images.

    Arguments:
        prior: Any prior.
    """

    def __init__(self, prior: Potential) -> None:
        self._prior = prior

    def of_images(self, x: Tensor) -> Tensor:
        self._prior.require_images(x)
        return self._prior.domain.project(x)

    def images(self, u: Tensor) -> Tensor:
        return u

    def negative_log_density(self, u: Tensor) -> Tensor:
        return self._prior.fn(u)

    def project(self, u: Tensor) -> Tensor:
        return self._prior.domain.project(u)


@final
class LatentVariable(Variable):
    r"""The latent z of a flow: the search finds a mode of the posterior density of latents.

    That is another point than the mode of the density of images: a density in other coordinates
    has another factor, here the Jacobian's determinant. None is computed: every image is the
    inverse of a latent, differentiated by the implicit function theorem, and no step leads to
    where the density is not defined. The inverse may lie outside of the domain, as the flow's
    samples may.

    Arguments:
        prior: Of a flow.

    Raises:
        ValueError: a prior that is no `FlowPrior`: its images have no latent.

    References:
        Invertible generative models for inverse problems (Asim et al., 2020),
        https://arxiv.org/abs/1905.11672.
    """

    def __init__(self, prior: Potential) -> None:
        if not isinstance(prior, FlowPrior):
            raise ValueError(
                f"only a FlowPrior has a latent to search in, got {type(prior).__name__}"
            )
        self._prior = prior
        self._domain: Domain = prior.domain

    def of_images(self, x: Tensor) -> Tensor:
        self._prior.require_images(x)
        inside = self._domain.to_flow(self._domain.project(x))
        return self._prior.flow.transform(inside, self._context(x)).detach()

    def images(self, u: Tensor) -> Tensor:
        return self._domain.from_flow(self._prior.flow.inverse(u, self._context(u)))

    def negative_log_density(self, u: Tensor) -> Tensor:
        return -self._prior.flow.base.log_prob(u, self._context(u))

    def project(self, u: Tensor) -> Tensor:
        return u

    def _context(self, u: Tensor) -> Tensor | None:
        context = self._prior.context
        if context is None:
            return None
        return context.expand(len(u), *context.shape[1:])
