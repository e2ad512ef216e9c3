"""Invertible residual networks in the place of an operator whose inverse is not stable."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import Accuracy, Bijection, Composition, LogDet, MultiScale, ResidualBlock
from iresflow.lipschitz import (
    PADDINGS,
    Branch,
    activation_named,
    conv_branch,
    dense_branch,
    normalization_named,
)
from iresflow.models.certified import CertifiedModel
from iresflow.models.inversion import FlowInverse, invert_flow
from iresflow.models.parts.plain import integer, integers, number, widths, word
from iresflow.tensors import at_least_float32, transformed, wide_norm

__all__ = ["LearnedOperator"]

MARGIN = 1e-12
"""By what the layers' limits are lowered, relatively, for the rounding of their product."""


@final
class LearnedOperator(CertifiedModel):
    r"""An invertible residual network F near an operator K, whose inverse regularises.

    F is a chain of blocks :math:`x + g(x)` with :math:`\operatorname{Lip}(g) \le L < 1`, so that
    its inverse has a Lipschitz constant of at most :math:`1 / (1 - L)` a block, certified. L is
    the regularisation parameter: an error of :math:`\delta` in what is inverted comes out as
    :math:`\delta / (1 - L)` at most, and the smaller 1 - L, the closer to K can F be. With
    :math:`L(\delta) \to 1` and :math:`\delta / (1 - L(\delta)) \to 0` as :math:`\delta \to 0`, the
    inverse of F is a convergent regularisation, if :math:`|F(x) - K x|` is of lower order than
    1 - L at the solution x (Arndt et al., 2023, https://arxiv.org/abs/2306.01335).

    K maps a space to itself: `SelfAdjoint` is one, also for any other linear operator. It is
    trained by `iresflow.fit` with `Approximation` or `Reconstruction`.

    F acts in units of the data, :math:`F(x) = s F_0(x / s)` with the root mean square s of what
    `initialize` has seen: data and noise in other units have the same model in these units.

    Arguments:
        shape: (C, H, W) of an image, or (D,) of a vector.
        blocks: Number of residual blocks.
        hidden: Width inside the branches: one number, or one for each gap between layers. None at
            all, ``()``, makes branches of one linear layer.
        lipschitz: L, of each block, in (0, 1).
        kernels: Sides of the kernels of a branch's convolutions, odd: one a layer (images).
        padding: What they read beyond the border: zeros, circular or reflect.
        activation: Name of the activations between the layers: clipswish, elu, lipswish, softplus
            or tanh.
        normalization: What training divides the weights by. ``certified`` norms are those that
            the stored model has; estimates run ahead by a percent, which counts where L is near 1.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> net = LearnedOperator((8,), hidden=16, lipschitz=0.9).eval()
        >>> z = torch.randn(3, 8)
        >>> torch.allclose(net(net.inverse(z)), z, atol=1e-3)
        True
        >>> net.stability() <= 1 / (1 - 0.9)
        True
    """

    def __init__(
        self,
        shape: Sequence[int],
        blocks: int = 1,
        hidden: int | Sequence[int] = 64,
        *,
        lipschitz: float = 0.9,
        kernels: Sequence[int] = (3, 3, 3),
        padding: str = "zeros",
        activation: str = "elu",
        normalization: str = "certified",
    ) -> None:
        self.spec: dict[str, Any] = {
            "shape": integers("shape", shape, 1),
            "blocks": integer("blocks", blocks, 1),
            "hidden": widths("hidden", hidden),
            "lipschitz": _limit(lipschitz),
            "kernels": integers("kernels", kernels, 1),
            "padding": word("padding", padding),
            "activation": word("activation", activation),
            "normalization": word("normalization", normalization),
        }
        maps = [ResidualBlock(_branch(self.spec)) for _ in range(self.spec["blocks"])]
        chain: Bijection = Composition(maps)
        event = tuple(self.spec["shape"])
        if len(event) == 3:
            chain = MultiScale([chain], [event], [])  # latents are flat
        super().__init__(chain, Composition(), event)
        self.lipschitz: float = self.spec["lipschitz"]
        self.unit: Tensor
        self.initialized: Tensor
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """F(x), ``(B, *shape)`` to ``(B, *shape)``.

        Raises:
            ValueError: x has another shape, is not of floats, or (in eval mode) not finite.
        """
        with own_arithmetic():
            x = self._checked(x)
            unit = self.unit.to(x.dtype)
            return unit * self.bijection.transform(x / unit).reshape(x.shape)

    def transform_and_log_det(self, x: Tensor, log_det: LogDet) -> tuple[Tensor, Tensor]:
        """F(x), ``(B, *shape)``, and its log-determinants ``(B,)``. Errors: as `forward`.

        Arguments:
            x: ``(B, *shape)``.
            log_det: The estimator of the blocks' log-determinants.
        """
        with own_arithmetic():
            x = self._checked(x)
            unit = self.unit.to(x.dtype)
            z, term = self.bijection(x / unit, None, log_det)
            return unit * z.reshape(x.shape), term

    def inverse(self, z: Tensor, tol: float | None = None) -> Tensor:
        """The reconstruction ``(B, *shape)`` alone; see `invert`.

        Arguments:
            z: ``(B, *shape)``.
            tol: Largest certified error of each block's inverse, in the units of x.
        """
        return self.invert(z, None if tol is None else Accuracy(tol)).value

    def invert(self, z: Tensor, accuracy: Accuracy | None = None) -> FlowInverse:
        """The reconstruction x with F(x) = z, certified by blocks and measured as a whole.

        It is differentiable in z and in the weights, to any order.

        Arguments:
            z: ``(B, *shape)``; of normal equations, what `SelfAdjoint.back` gives.
            accuracy: How exact it is to be, in the units of x; None for `Accuracy`'s numbers times
                the root mean square of the training data.

        Raises:
            ValueError: as `forward`.
            InversionError: a block missed its tolerance, or the measured residual did.
            NotContractiveError: a block has no certified Lipschitz bound below 1.
        """
        with own_arithmetic():
            z = self._checked(z)
            size, unit = float(self.unit), self.unit.to(z.dtype)
            own = Accuracy() if accuracy is None else _in_units(accuracy, size)
            scaled = (z / unit).flatten(1)
            found = invert_flow(self.bijection, self.data_map, scaled, None, own)
            value = unit * found.value.reshape(z.shape)
            # Quotient and product round, and the inverse stretches what the first one adds.
            rounding = torch.finfo(z.dtype).eps * (
                self.stability() * wide_norm(z) + wide_norm(value)
            )
            return replace(
                found,
                value=value,
                block_error=size * found.block_error,
                floor=size * found.floor,
                rounding=size * found.rounding,
                worst_case=size * found.worst_case + rounding,
                residual=size * found.residual,
            )

    @torch.no_grad()
    def stability(self) -> float:
        r"""Certified bound of the inverse's Lipschitz constant: 1 / (1 - L) a block, or less.

        :math:`|F^{-1}(z) - F^{-1}(z')| \le` this times :math:`|z - z'|`, for all z and z'.
        """
        with own_arithmetic():
            return self.bijection.stretch(self.base_dim).inverse

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the unit to the root mean square of a batch ``(B, *shape)``.

        Raises:
            ValueError: another shape, or a root mean square that is 0, not finite, or not a
                normal number of the model's type of float.
        """
        x = self._checked(x)
        unit = float(x.double().square().mean().sqrt())
        info = torch.finfo(self.unit.dtype)
        if not info.tiny <= unit <= info.max:
            raise ValueError(
                f"the data has a root mean square of {unit:.4g}; it has to be above 0 and a "
                f"number that {self.unit.dtype} can hold"
            )
        self.unit.fill_(unit)
        self.initialized.fill_(True)

    def _checked(self, x: Tensor) -> Tensor:
        """x in at least float32; its values are looked at in eval mode, as training did once."""
        if tuple(x.shape[1:]) != self.shape or len(x) == 0 or not x.is_floating_point():
            raise ValueError(
                f"this operator takes floats of shape (B, {', '.join(map(str, self.shape))}), B "
                f"at least 1, got {x.dtype} {tuple(x.shape)}"
            )
        looked_at = not (self.training or transformed())
        if looked_at and not bool(x.detach().isfinite().all()):
            raise ValueError("the input holds NaN or infinity")
        return at_least_float32(x)


def _limit(value: object) -> float:
    lipschitz = number("lipschitz", value)
    if not 0 < lipschitz < 1:
        raise ValueError(
            f"lipschitz must lie strictly between 0 and 1, got {lipschitz}: at 1 the inverse need "
            "not exist"
        )
    return lipschitz


def _branch(spec: dict[str, Any]) -> Branch:
    """g with a certified bound of at most ``lipschitz``, without an activation at its input."""
    shape, hidden = spec["shape"], spec["hidden"]
    if len(shape) not in (1, 3):
        raise ValueError(f"shape is (C, H, W) or (D,), got {tuple(shape)}")
    dense = 3 if isinstance(hidden, int) else len(hidden) + 1
    layers = dense if len(shape) == 1 else len(spec["kernels"])
    settings: dict[str, Any] = {
        "activation": activation_named(spec["activation"]),
        "coeff": spec["lipschitz"] ** (1 / layers) * (1 - MARGIN),
        "normalization": normalization_named(spec["normalization"]),
        "activate_input": False,
    }
    if len(shape) == 1:
        return dense_branch(shape[0], hidden, **settings)
    channels, *size = shape
    padding = PADDINGS.get(spec["padding"])
    if padding is None:
        raise ValueError(f"padding is one of {', '.join(PADDINGS)}, got {spec['padding']!r}")
    return conv_branch(
        channels, hidden, tuple(size), kernels=spec["kernels"], padding=padding, **settings
    )


def _in_units(accuracy: Accuracy, unit: float) -> Accuracy:
    residual = accuracy.residual
    return replace(
        accuracy,
        tol=accuracy.tol / unit,
        residual=None if residual is None else residual / unit,
    )
