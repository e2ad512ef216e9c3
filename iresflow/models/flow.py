"""A flow: a bijection and a base density, and all that users ask of the two."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import Accuracy, Bijection, Composition, LogDet
from iresflow.bijections.base import warn_of_floor
from iresflow.linearization import Linearization
from iresflow.lipschitz import ContextDim, compiled_kernels
from iresflow.logdet import (
    Exact,
    ExactWhereSmall,
    Krylov,
    LogDetEstimate,
    LogDetEstimator,
    PowerSeries,
)
from iresflow.models.certified import CertifiedModel
from iresflow.models.contexts import context_shape, shown
from iresflow.models.densities import BaseDensity
from iresflow.models.distribution import FlowDistribution
from iresflow.models.generative import ClassProbabilities, by_bayes, log_prior_of
from iresflow.models.inversion import FlowInverse, invert_flow
from iresflow.models.likelihood import Likelihood, sample_stream
from iresflow.models.plain import integer, number
from iresflow.streams import KeyedStream, Stream, fresh_seed
from iresflow.tensors import at_least_float32, transformed

__all__ = ["Flow"]

EVALUATION_SEED = 0
"""Seed of the probes that all points have in common in eval mode."""

LARGE = 1_000_000
"""Parameters of a model that is initialised by compiled kernels in any case."""

ROUNDING = 8.0
"""What is allowed for a likelihood's arithmetic, in units of eps for each dimension."""


class Flow(CertifiedModel):
    r"""The density of x under :math:`z = F(x)` with z of a base density (thesis, eq. 5.4).

    :math:`\log p(x) = \log p_Z(F(x)) + \log|\det J_F(x)|`, in nats.

    Arguments:
        bijection: From ``(B, *shape)`` to flat latents ``(B, D)``.
        base: The density of the latent.
        shape: Of one sample x.
        data_map: A map in closed form that acts on x first, such as a logit; F is both.
        context_dim: Dimension of the context, or (C, H, W) of one that is an image; 0 for none.
        log_det: The estimator in training mode. In eval mode an exact one stays, and `EVALUATION`
            takes the place of any other: exact up to 32 dimensions, and Krylov subspaces of two
            probes above.
    """

    EVALUATION: ClassVar = ExactWhereSmall(Krylov(tol=1e-6, probes=2))
    CLASSIFICATION: ClassVar = Krylov(tol=1e-6, probes=8)
    INTEGER_ADVICE: ClassVar = ""

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
        super().__init__(bijection, data_map or Composition(), shape)
        self.base = base
        self.context_shape = context_shape(context_dim)
        self.context_dim = self.context_shape[0] if self.context_shape else 0
        self.log_det = log_det or PowerSeries()

    # Maps.

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        log_det: LogDet | None = None,
        generator: Stream | None = None,
        *,
        check: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Latents ``(B, D)`` and log-determinants ``(B,)`` of x ``(B, *shape)``.

        Arguments:
            x, context, log_det, generator: As of `log_prob`.
            check: Whether x and the context are checked. A look at their values makes the host
                wait for a GPU in every call, and training has checked its data once.
        """
        with own_arithmetic():
            if check:
                x, context = self._checked(x, context)
            estimator = self._bound_estimator(log_det, generator)
            y, outer = self.data_map(x)
            z, inner = self.bijection(y, context, estimator)
            return z, outer + inner

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents ``(B, D)`` alone, without the cost of the log-determinant."""
        with own_arithmetic():
            x, context = self._checked(x, context)
            return self.bijection.transform(self.data_map.transform(x), context)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, tol: float | None = None
    ) -> Tensor:
        """x ``(B, *shape)`` from latents ``(B, D)``; see `invert` for what it guarantees."""
        return self.invert(z, context, None if tol is None else Accuracy(tol)).value

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> FlowInverse:
        """x from latents ``(B, D)``, with certified block errors and the measured residual.

        Each block is inverted to a certified error of ``accuracy.tol`` in its own input's
        Euclidean norm, in the type of the weights first and in float64 at the end; float64 is also
        carried between the blocks. Without an accuracy, that error is the default of `Accuracy` or
        what the floating-point format allows, whichever is larger. Then the blocks' forward maps
        are run on the result in float64 and compared with z. Samples that are further from it
        than ``accuracy.residual`` are inverted again, with tighter blocks.

        x has the type of z: float64 latents of a float32 model give x in float64. It is
        differentiable in z, the context and the parameters (implicit function theorem).

        Warns:
            InversionWarning: the tolerance that was asked for is below what the floating-point
                format allows; the result is as exact as that, and ``block_error`` says how exact.
                Or the residual meets its tolerance only before x is rounded to the type of z.

        Raises:
            ValueError: z or the context has another shape than the model's, or z is not finite.
            InversionError: a block missed its tolerance, or the measured residual did, or x is not
                finite.
            NotContractiveError: a block has no certified Lipschitz bound below 1.
            NotInitializedError: ActNorm has not seen data.
        """
        with own_arithmetic():
            dim = self.base_dim
            if z.ndim != 2 or z.shape[1] != dim or not z.is_floating_point():
                raise ValueError(
                    f"latents are floats of shape (B, {dim}), got {z.dtype} {tuple(z.shape)}"
                )
            if not bool(torch.isfinite(z.detach()).all()):
                raise ValueError("the latent holds NaN or infinity")
            context = self._checked_context(context, len(z))
            z = z.to(torch.promote_types(z.dtype, self._dtype()))
            result = invert_flow(self.bijection, self.data_map, z, context, accuracy or Accuracy())
            if accuracy is not None:
                error = torch.maximum(result.block_error, result.rounding)
                warn_of_floor(error, result.limit, accuracy.tol, z.dtype)
            return result

    # Densities.

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
            return self._likelihood(x, context, log_det, stream)

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

        Arguments:
            x: ``(B, *shape)``; for images floats in [0, 1), such as dequantised ones.
            prior: Class probabilities ``(context_dim,)``; all equal by default.
            log_det: The estimator of the residual blocks' log-determinants; None in eval mode for
                that of `likelihood` with eight probes, whose spread tells the classes apart.
            generator: Where the seed is drawn from; None for torch's global stream.
            level: That the intervals of all classes of a sample hold at once.
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

        def likelihood_of(number: int) -> Likelihood:
            return self.likelihood(x, classes[number : number + 1], log_det, seed=seed)

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

    # State.

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialises the data map and the ActNorm layers from one batch ``(B, *shape)`` of data.

        Raises:
            ValueError: wrong shape or values, or a batch in which a channel is constant.
        """
        with own_arithmetic():
            x, context = self._checked(x, context)
            # Compiled passes take a fraction of the time of PyTorch's through a large model.
            large = sum(p.numel() for p in self.parameters()) >= LARGE
            with compiled_kernels() if large else nullcontext():
                self.bijection.initialize(self.data_map.initialize(x), context)

    def _likelihood(
        self,
        x: Tensor,
        context: Tensor | None,
        log_det: LogDetEstimator | None,
        stream: Stream,
        noise: Tensor | float = 0.0,
        of_noise: Sequence[LogDetEstimate] = (),
    ) -> Likelihood:
        """The likelihood, less the log-density of noise in x, with the estimates in that."""
        estimator = self._bound_estimator(log_det, stream)
        estimates: list[LogDetEstimate] = []

        def recording(linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
            estimates.append(estimator(linearization))
            return estimates[-1]

        z, term = self.forward(x, context, recording, stream, check=False)
        log_prob = self.base.log_prob(z, context) + term - noise
        eps = torch.finfo(log_prob.dtype).eps
        rounding = ROUNDING * eps * (self.base_dim + log_prob.abs() + abs(noise))
        return Likelihood.of_blocks(log_prob, [*of_noise, *estimates], rounding)

    def _bound_estimator(
        self, log_det: LogDet | None, generator: Stream | None
    ) -> partial[LogDetEstimate]:
        estimator = log_det or self.log_det
        if log_det is None and not self.training and not isinstance(estimator, Exact):
            estimator = self.EVALUATION
        if not self.training and (generator is None or isinstance(generator, torch.Generator)):
            seed = EVALUATION_SEED if generator is None else fresh_seed(generator)
            generator = KeyedStream.common(seed, self._device())
        return partial(estimator, generator=generator)

    def _dtype(self) -> torch.dtype:
        floats = (t.dtype for t in [*self.parameters(), *self.buffers()] if t.is_floating_point())
        return next(floats, torch.get_default_dtype())

    def _device(self) -> torch.device:
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def _checked(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"this flow takes samples of shape (B, {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape)}"
            )
        if len(x) == 0:
            raise ValueError("an empty batch has no density")
        if not x.is_floating_point():
            raise ValueError(f"a density is of floats, got {x.dtype}{self.INTEGER_ADVICE}")
        x = at_least_float32(x)
        if not transformed():  # by torch.func.vmap, values can't be looked at
            if not bool(torch.isfinite(x.detach()).all()):
                raise ValueError("the input holds NaN or infinity")
            self._check_range(x.detach())
        return x, self._checked_context(context, len(x))

    def _check_range(self, x: Tensor) -> None:
        """Raises a ValueError where x lies outside of the domain; any real vector lies inside."""

    def _checked_context(self, context: Tensor | None, n: int) -> Tensor | None:
        """The context of n samples in the type of the weights, or a ValueError."""
        if not self.context_shape:
            if context is not None:
                raise ValueError("this flow takes no context: it was built with context_dim=0")
            return None
        if context is None:
            raise ValueError(
                f"this flow needs a context of shape ({n}, {shown(self.context_shape)})"
            )
        if context.ndim == 1 + len(self.context_shape) and len(context) == 1:
            context = context.expand(n, *context.shape[1:])
        if tuple(context.shape) != (n, *self.context_shape):
            raise ValueError(
                f"the context must have shape ({n}, {shown(self.context_shape)}), got "
                f"{tuple(context.shape)}"
            )
        if context.is_complex():
            raise ValueError(f"a context holds real numbers, got {context.dtype}")
        context = context.to(self._dtype())
        if not transformed() and not bool(torch.isfinite(context.detach()).all()):
            raise ValueError(f"the context holds NaN, or numbers that {context.dtype} can't hold")
        return context
