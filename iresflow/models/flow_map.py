"""The map of a flow: from samples to latents and back, given a context."""

from contextlib import nullcontext
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import Accuracy, Bijection, Composition, LogDet, StreamedLogDet
from iresflow.bijections.inverse import warn_of_floor
from iresflow.lipschitz import ContextDim, compiled_kernels
from iresflow.logdet import TRAINING, Exact, ExactWhereSmall, Krylov, LogDetEstimator
from iresflow.models.certified import CertifiedModel
from iresflow.models.inversion import FlowInverse, invert_flow
from iresflow.models.parts.contexts import context_shape, shown
from iresflow.streams import KeyedStream, Stream, fresh_seed
from iresflow.tensors import at_least_float32, require_tensor, transformed

__all__ = ["FlowMap"]

EVALUATION_SEED = 0
"""Seed of the probes that all points have in common in eval mode."""

LARGE = 1_000_000
"""Parameters of a model that is initialised by compiled kernels in any case."""


class FlowMap(CertifiedModel):
    """A bijection of samples and latents, given a context, with the checks of what it takes.

    Arguments:
        bijection: From ``(B, *shape)`` to flat latents ``(B, D)``.
        shape: Of one sample x.
        data_map: A map in closed form that acts on x first, such as a logit.
        context_dim: Dimension of the context, or (C, H, W) of one that is an image; 0 for none.
        log_det: The estimator in training mode, see `Flow`.
    """

    EVALUATION: ClassVar = ExactWhereSmall(Krylov(tol=1e-6, probes=2))
    INTEGER_ADVICE: ClassVar = ""

    def __init__(
        self,
        bijection: Bijection,
        shape: tuple[int, ...],
        data_map: Bijection | None,
        context_dim: ContextDim,
        log_det: LogDetEstimator | None,
    ) -> None:
        super().__init__(bijection, data_map or Composition(), shape)
        self.context_shape = context_shape(context_dim)
        self.context_dim = self.context_shape[0] if self.context_shape else 0
        self.log_det = log_det or TRAINING

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        log_det: StreamedLogDet | None = None,
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
            z = self._checked_latents(z)
            context = self._checked_context(context, len(z))
            result = invert_flow(self.bijection, self.data_map, z, context, accuracy or Accuracy())
            if accuracy is not None:
                error = torch.maximum(result.block_error, result.rounding)
                warn_of_floor(error, result.limit, accuracy.tol, z.dtype)
            return result

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialises the data map and the ActNorm layers from one batch ``(B, *shape)`` of data.

        The estimates of the layers' norms settle, too, so that the first training step is exact.

        Raises:
            ValueError: wrong shape or values, or a batch in which a channel is constant.
        """
        with own_arithmetic():
            x, context = self._checked(x, context)
            # Compiled passes take a fraction of the time of PyTorch's through a large model.
            large = sum(p.numel() for p in self.parameters()) >= LARGE
            with compiled_kernels() if large else nullcontext():
                for _, block in self.contractions():
                    block.sharpen()
                self.bijection.initialize(self.data_map.initialize(x), context)

    def _bound_estimator(self, log_det: StreamedLogDet | None, generator: Stream | None) -> LogDet:
        estimator: StreamedLogDet = log_det or self.log_det
        if log_det is None and not self.training and not isinstance(estimator, Exact):
            estimator = self.EVALUATION
        if not self.training and (generator is None or isinstance(generator, torch.Generator)):
            seed = EVALUATION_SEED if generator is None else fresh_seed(generator)
            generator = KeyedStream.common(seed, self._device())
        # Not a function of our own, which would be one more frame in each call.
        return partial(estimator, generator=generator)

    def _checked(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        require_tensor("samples", x)
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
        require_tensor("contexts", context)
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
