"""Linear operators on images: two functions that are checked to be adjoint to each other."""

from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.tensors import wide_norm

__all__ = ["LinearOperator", "average_pooling", "blur", "identity", "masking"]

Function = Callable[[Tensor], Tensor]

ROUNDING = 100.0
"""What rounding may make of a pair of adjoints, in units of eps of the norms' product."""

TRIALS = 4
"""Random pairs of images and measurements that the adjoint is tried with."""


@final
class LinearOperator:
    r"""A linear operator A from images to measurements, and its adjoint.

    It is tried once, with random images x and measurements y: :math:`\langle A x, y\rangle =
    \langle x, A^\top y\rangle` up to rounding. A function that is not linear fails this too.

    Arguments:
        forward: A, ``(B, *shape)`` to ``(B, *measured)``, each sample on its own.
        adjoint: The adjoint, ``(B, *measured)`` to ``(B, *shape)``.
        shape: Of one image, such as (C, H, W).
        dtype: The type of float that it is tried in; None for PyTorch's default.
        device: Where it is tried.

    Attributes:
        shape: Of one image.
        measured: Of one measurement.

    Raises:
        ValueError: images without pixels; one of the functions gives no tensor, another shape or
            numbers that are not finite; or the two are not adjoint to each other.

    Example:
        >>> half = LinearOperator(lambda x: 0.5 * x, lambda y: 0.5 * y, (1, 2, 2))
        >>> half(torch.ones(1, 1, 2, 2)).sum()
        tensor(2.)
    """

    def __init__(
        self,
        forward: Function,
        adjoint: Function,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._forward = forward
        self._adjoint = adjoint
        self.shape = tuple(shape)
        self.measured = self._tried(dtype or torch.get_default_dtype(), torch.device(device))

    def __call__(self, x: Tensor) -> Tensor:
        """A x, ``(B, *shape)`` to ``(B, *measured)``.

        Raises:
            ValueError: images of another shape.
        """
        _require_shape("images", x, self.shape)
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint of measurements, ``(B, *measured)`` to ``(B, *shape)``.

        Raises:
            ValueError: measurements of another shape.
        """
        _require_shape("measurements", y, self.measured)
        return self._adjoint(y)

    @torch.no_grad()
    def _tried(self, dtype: torch.dtype, device: torch.device) -> tuple[int, ...]:
        """The shape of measurements, where the two functions are adjoint to each other."""
        # From a seed of its own: the caller's random stream stays where it is.
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            drawn = torch.randn(TRIALS, *shape, generator=generator, dtype=torch.float64)
            return drawn.to(device, dtype)

        x = random(*self.shape)
        if x.numel() == 0:
            raise ValueError(f"images of shape {self.shape} have no pixels")
        forward = self._forward(x)
        _require_tensor("operator", forward)
        if len(forward) != TRIALS:
            raise ValueError(
                f"the operator makes {tuple(forward.shape)} of images {tuple(x.shape)}: the first "
                "dimension counts samples, and stays"
            )
        y = random(*forward.shape[1:])
        backward = self._adjoint(y)
        _require_tensor("adjoint", backward)
        if backward.shape != x.shape:
            raise ValueError(
                f"the adjoint makes {tuple(backward.shape)} of measurements {tuple(y.shape)}, and "
                f"images are {tuple(x.shape)}"
            )
        left = (forward.double() * y.double()).flatten(1).sum(1)
        right = (x.double() * backward.double()).flatten(1).sum(1)
        scale = wide_norm(forward) * wide_norm(y) + wide_norm(x) * wide_norm(backward)
        apart = (left - right).abs()
        # Not the other way round, which NaN would pass.
        if not bool((apart <= ROUNDING * torch.finfo(dtype).eps * scale).all()):
            worst = int((apart - scale).argmax())
            raise ValueError(
                "the two functions are not linear and adjoint to each other: for random x and y, "
                f"<A x, y> = {float(left[worst]):.6g} and <x, A* y> = {float(right[worst]):.6g}"
            )
        return tuple(forward.shape[1:])


def identity(shape: Sequence[int]) -> LinearOperator:
    """The identity on images of a shape: for denoising."""
    return LinearOperator(lambda x: x, lambda y: y, shape)


def masking(mask: Tensor) -> LinearOperator:
    """The product with a mask of the images' shape, such as of zeros and ones: for inpainting.

    Raises:
        ValueError: a mask with NaN or infinity.
    """
    kept = mask.detach().clone()

    def masked(x: Tensor) -> Tensor:
        return x * kept.to(x)

    return LinearOperator(masked, masked, tuple(mask.shape))


def blur(kernel: Tensor, shape: Sequence[int]) -> LinearOperator:
    """The convolution with a kernel, channel by channel, on a torus: for deblurring.

    Arguments:
        kernel: ``(h, w)`` with odd sides, at most those of the images.
        shape: (C, H, W) of an image.

    Raises:
        ValueError: even sides, or a kernel larger than the images.
    """
    sides, (height, width) = tuple(kernel.shape), tuple(shape)[-2:]
    if len(sides) != 2 or not all(side % 2 for side in sides):
        raise ValueError(f"a kernel is (h, w) with odd sides, got {sides}")
    if sides[0] > height or sides[1] > width:
        raise ValueError(f"a kernel of {sides} is larger than images of {(height, width)}")
    held = kernel.detach().clone()
    down, right = sides[0] // 2, sides[1] // 2

    def correlated(x: Tensor, weights: Tensor) -> Tensor:
        planes = F.pad(x.flatten(0, 1)[:, None], (right, right, down, down), mode="circular")
        return F.conv2d(planes, weights.to(x)[None, None]).reshape(x.shape)

    return LinearOperator(
        lambda x: correlated(x, held.flip(0, 1)), lambda y: correlated(y, held), shape
    )


def average_pooling(factor: int, shape: Sequence[int]) -> LinearOperator:
    """The means over squares of pixels: for superresolution.

    Arguments:
        factor: Pixels on the side of a square, a divisor of height and width.
        shape: (C, H, W) of an image.

    Raises:
        ValueError: a factor that does not divide both.
    """
    sides = tuple(shape)[-2:]
    if factor < 1 or any(side % factor for side in sides):
        raise ValueError(f"squares of {factor} pixels do not fill images of {sides}")

    def spread_out(y: Tensor) -> Tensor:
        wide = y.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        return wide / factor**2

    return LinearOperator(lambda x: F.avg_pool2d(x, factor), spread_out, shape)


def _require_tensor(what: str, found: object) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"the {what} must make tensors of tensors, got {type(found).__name__}")


def _require_shape(what: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"this operator takes {what} of shape (B, {', '.join(map(str, shape))}), got "
            f"{tuple(x.shape)}"
        )
