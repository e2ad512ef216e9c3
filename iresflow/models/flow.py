"""A flow: a bijection and a base density, and all that users ask of the two."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import Accuracy, Bijection
from iresflow.linearization import Linearization
from iresflow.lipschitz import ContextDim
from iresflow.logdet import Exact, Krylov, LogDetEstimate, LogDetEstimator
from iresflow.models.densities import BaseDensity
from iresflow.models.distribution import FlowDistribution
from iresflow.models.flow_map import FlowMap
from iresflow.models.generative import ClassProbabilities, by_bayes, log_prior_of
from iresflow.models.inversion import invert_flow
from iresflow.models.likelihood import (
    BlockLikelihood,
    Likelihood,
    arithmetic_error,
    sample_stream,
)
from iresflow.models.parts.contexts import shown
from iresflow.models.parts.plain import integer, number
from iresflow.streams import Stream, fresh_seed

__all__ = ["Flow"]


class Flow(FlowMap):
    r"""The density of x under :math:`z = F(x)` with z of a base density (thesis, eq. 5.4).

    :math:`\log p(x) = \log p_Z(F(x)) + \log|\det J_F(x)|`, in nats.

    Arguments:
        bijection: From ``(B, *shape)`` to flat latents ``(B, D)``.
        base: The density of the latent.
        shape: Of one sample x.
        data_map: A map in closed form that acts on x first, such as a logit; F is both.
        context_dim: Dimension of the context, or (C, H, W) of one that is an image; 0 for none.
        log_det: The estimator in training mode. In eval mode an exact one stays, and `EVALUATION`
            takes the place of any other: exact up to 64 dimensions (its gradient up to 32), and
            Krylov subspaces of two probes above.
    """

    CLASSIFICATION: ClassVar = Krylov(tol=1e-6, probes=8)

    def __init__(
        self,
        bijection: Bijection,
        base: BaseDensity,
        shape: tuple[int, ...],
        *,
        data_map: Bijection | None = None,
        context_dim: ContextDim = 0,
        log_det: LogDetEstimator | None = None,
    ) -> None:
        super().__init__(bijection, shape, data_map, context_dim, log_det)
        self.base = base

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        log_det: LogDetEstimator | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-density of x ``(B, *shape)`` in nats, ``(B,)``.

        In eval mode it is a function of x (and of the context) alone: it repeats, is continuous
        and differentiable up to the estimator's tolerance, and is the same for a point in
        whatever batch it comes. For that all points share their probes, which are a function of a
        fixed seed, or of a number that is drawn from the generator. So where the log-determinant
        is estimated, its error is nearly the same for neighbouring points, and **does not average
        out** over a data set: for means, and for how exact a number is, take `likelihood`.

        Its gradient is that of the estimator's surrogate, in both modes: where the
        log-determinant is not exact, an estimate of the exact density's gradient with the same
        probes, and not the derivative of the estimated values.

        Arguments:
            x: ``(B, *shape)``; for images floats in [0, 1).
            context: ``(B, context_dim)``, for conditional flows.
            log_det: The estimator of the residual blocks' log-determinants.
            generator: The probes' random stream.
        """
        with own_arithmetic():
            z, term = self.forward(x, context, log_det, generator)
            return self.base.log_prob(z, context) + term

    @torch.no_grad()
    def likelihood(
        self,
        x: Tensor,
        context: Tensor | None = None,
        log_det: LogDetEstimator | None = None,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
    ) -> Likelihood:
        """Log-densities in nats with their standard errors and truncation bounds.

        The probes of a sample are a function of the seed, and of x and its context. So errors are
        independent between different samples, and between seeds: they average out. With the same
        seed a sample has the same value in any batch (up to rounding, and to the tolerance where
        that decides when a probe stops). Without one, each call draws a new seed.

        Arguments:
            x: ``(B, *shape)``; for images floats in [0, 1).
            context: ``(B, context_dim)``, for conditional flows.
            log_det: The estimator of the residual blocks' log-determinants.
            generator: Where the seed is drawn from; None for torch's global stream.
            seed: Any integer.

        Raises:
            ValueError: as `log_prob`, or both a generator and a seed.
            NotContractiveError: in eval mode, where a block's certified bound is not below 1.
        """
        with own_arithmetic():
            x, context = self._checked(x, context)
            stream = sample_stream((x, context), generator, seed)
            return self._in_blocks(x, context, log_det, stream).total()

    @torch.no_grad()
    def classify(
        self,
        x: Tensor,
        prior: Tensor | None = None,
        log_det: LogDetEstimator | None = None,
        generator: torch.Generator | None = None,
        *,
        level: float = 0.95,
        seed: int | None = None,
    ) -> ClassProbabilities:
        """Class probabilities by Bayes' rule, of a flow whose contexts are classes, one-hot.

        All classes of a sample share their probes, so most of the error is common to them and
        cancels in what decides, the differences of their log-densities. The intervals are of
        these differences, from what each probe gives for one class and for the other.

        Arguments:
            x: ``(B, *shape)``; for images floats in [0, 1), such as dequantised ones.
            prior: Class probabilities ``(context_dim,)``; all equal by default.
            log_det: The estimator of the residual blocks' log-determinants; None in eval mode for
                that of `likelihood` with eight probes, whose spread tells the classes apart.
            generator: Where the seed is drawn from; None for torch's global stream.
            level: That all intervals of a sample hold at once.
            seed: Any integer.

        Raises:
            ValueError: the flow has no context, as `likelihood`, or a prior or level out of range.
            NotContractiveError: in eval mode, where a block's certified bound is not below 1.
        """
        if len(self.context_shape) != 1:
            raise ValueError("this flow has no classes: its context is no vector of a number each")
        seed = fresh_seed(generator) if seed is None else seed
        if log_det is None and not self.training and not isinstance(self.log_det, Exact):
            log_det = replace(self.EVALUATION, otherwise=self.CLASSIFICATION)
        log_prior = log_prior_of(prior, self.context_dim, x)
        classes = torch.eye(self.context_dim, device=x.device)

        def likelihood_of(number: int) -> BlockLikelihood:
            with own_arithmetic():
                point, context = self._checked(x, classes[number : number + 1])
                stream = sample_stream((point,), None, seed)  # without the class
                return self._in_blocks(point, context, log_det, stream)

        return by_bayes(likelihood_of, log_prior, level)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n samples x, ``(n, *shape)``; the log-determinant is never computed.

        Arguments:
            n: Number of samples, 0 or more.
            context: ``(n, context_dim)``, or ``(1, context_dim)`` for all.
            temperature: Scale of the latent's deviations from its mean, 0 or more; 1 samples the
                density.
            generator: The random stream; None for torch's global one.

        Raises:
            ValueError: a number or a context that is none of these.

        Other errors: as `invert`.
        """
        return self.rsample(n, context, temperature, generator)

    def rsample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`sample` with gradients: of the parameters and the context, by the implicit function
        theorem at the inverse of a latent that the base density draws with gradients of its own.
        """
        with own_arithmetic():
            n, temperature = integer("n", n, 0), number("temperature", temperature)
            if temperature < 0:
                raise ValueError(f"temperature must be 0 or more, got {temperature}")
            context = self._checked_context(context, n)
            z = self.base.sample(n, context, temperature, generator)
            return invert_flow(self.bijection, self.data_map, z, context, Accuracy()).value

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """n samples ``(n, *shape)`` and their log-densities ``(n,)`` under the model."""
        with own_arithmetic():
            x = self.sample(n, context, temperature, generator)
            if len(x) == 0:
                return x, x.new_zeros(0)
            context = self._checked_context(context, len(x))
            # Without the check of the range: a sample is where the model put it.
            z, term = self.forward(x, context, check=False)
            return x, self.base.log_prob(z, context) + term

    def as_distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The density as a `torch.distributions.Distribution`, with a ``transform``.

        Arguments:
            context: ``(*batch, context_dim)`` or ``(*batch, C, H, W)``, for conditional flows: one
                density for each.

        Raises:
            ValueError: a context of another shape or with NaN, or none where one is due.
        """
        if context is not None and self.context_shape:
            cut = context.ndim - len(self.context_shape)
            if cut < 0 or tuple(context.shape[cut:]) != self.context_shape:
                raise ValueError(
                    f"contexts have the shape (*batch, {shown(self.context_shape)}), got "
                    f"{tuple(context.shape)}"
                )
            rows = context.reshape(-1, *self.context_shape)
            checked = self._checked_context(rows, len(rows))
            assert checked is not None
            return FlowDistribution(self, checked.reshape(context.shape))
        return FlowDistribution(self, self._checked_context(context, 1))

    def _in_blocks(
        self,
        x: Tensor,
        context: Tensor | None,
        log_det: LogDetEstimator | None,
        stream: Stream,
        noise: Tensor | None = None,
        of_noise: Sequence[LogDetEstimate] = (),
    ) -> BlockLikelihood:
        """The likelihood, less the log-density of noise in x, with the estimates in that."""
        estimator = self._bound_estimator(log_det, stream)
        estimates: list[LogDetEstimate] = []

        def recording(
            linearization: Linearization, generator: Stream | None = None
        ) -> LogDetEstimate:
            estimates.append(estimator(linearization))
            return estimates[-1]

        z, term = self.forward(x, context, recording, stream, check=False)
        noise = torch.zeros_like(term) if noise is None else noise
        log_prob = self.base.log_prob(z, context) + term - noise
        rounding = arithmetic_error(log_prob, noise, self.base_dim)
        return BlockLikelihood(log_prob, [*of_noise, *estimates], rounding)
