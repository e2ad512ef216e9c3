"""What an inverse is asked for, and what is known of it."""

from dataclasses import dataclass
from typing import final
from warnings import warn

import torch
from torch import Tensor

from iresflow.errors import InversionError, InversionWarning, callers_level
from iresflow.solvers import Anderson, Solver
from iresflow.tensors import widest

__all__ = ["Accuracy", "Inverse", "require_finite", "warn_of_floor"]


@final
@dataclass(frozen=True)
class Accuracy:
    """How exact an inverse is to be.

    Attributes:
        tol: Largest certified Euclidean error of each residual block's inverse, in the units of
            the block's input. 0 asks for all that the floating-point format allows.
        solver: The solver of the blocks. Anderson acceleration takes the fewest evaluations of
            all that we have, on every trained model that we tried, and never more than twice those
            of `FixedPoint` at worst. It remembers ten tensors of a sample's size, less than one
            hidden layer of a branch.
        residual: Largest measured Euclidean distance of a flow's F(x) from the latent z. None for
            ``tol`` or 1e-5 in root mean square over the D dimensions, ``1e-5 * sqrt(D)``,
            whichever is larger.

    Raises:
        ValueError: tol is negative, residual not positive, or either not a number.
    """

    tol: float = 1e-5
    solver: Solver = Anderson()
    residual: float | None = None

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or positive, got {self.tol}")
        if self.residual is not None and not self.residual > 0:
            raise ValueError(f"residual must be positive or None, got {self.residual}")


@final
@dataclass(frozen=True)
class Inverse:
    """An inverse and what is known of it, for a batch of B samples.

    Attributes:
        value: x, ``(B, *event)``.
        steps: Evaluations of residual branches and products with their Jacobians, summed over the
            blocks, ``(B,)``.
        error: The largest certified error of any one block's inverse, ``(B,)``, Euclidean. It is
            above the tolerance only where rounding allows no better, and then at most twice
            `floor`.
        floor: The largest error that any one block's rounding alone makes necessary, ``(B,)``:
            no smaller tolerance can be certified in the type of float.
        bound: Upper bound of the distance of x from the exact inverse of the given z, ``(B,)``,
            Euclidean: the errors of all maps, each amplified at worst by the maps after it.
        lipschitz: Upper bound of the inverse map's Lipschitz constant.
    """

    value: Tensor
    steps: Tensor
    error: Tensor
    floor: Tensor
    bound: Tensor
    lipschitz: float

    @staticmethod
    def closed_form(
        value: Tensor, *, lipschitz: float = 1.0, rounding: Tensor | None = None
    ) -> "Inverse":
        """An inverse by formula: no steps, and no error but that of its arithmetic, ``(B,)``."""
        batch, device = value.shape[0], value.device
        steps = torch.zeros(batch, dtype=torch.long, device=device)
        zero = torch.zeros(batch, dtype=widest(device), device=device)
        return Inverse(value, steps, zero, zero, zero if rounding is None else rounding, lipschitz)

    def after(self, later: "Inverse") -> "Inverse":
        """This inverse as the next one after those of later maps, whose result it was given.

        An error e of what it was given is amplified to ``lipschitz * e`` at most.
        """
        return Inverse(
            self.value,
            self.steps + later.steps,
            torch.maximum(self.error, later.error),
            torch.maximum(self.floor, later.floor),
            self.bound + self.lipschitz * later.bound,
            self.lipschitz * later.lipschitz,
        )


def require_finite(x: Tensor) -> None:
    """Raises an InversionError where an inverse ``(B, *event)`` is not finite."""
    finite = x.detach().isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise InversionError(
            f"the inverses of {int((~finite).sum())} of {len(x)} samples are not finite in "
            f"{x.dtype}: what was inverted is, or the scales of the map take it beyond the "
            "largest number"
        )


def warn_of_floor(error: Tensor, floor: Tensor, tol: float, dtype: torch.dtype) -> None:
    """Says so where certified errors ``(B,)`` exceed a tolerance that was asked for.

    Warns:
        InversionWarning: with the error, the tolerance and the floor.
    """
    reached = float(error.max()) if len(error) else 0.0
    if tol > 0 and not reached <= tol:
        more = "" if dtype == torch.float64 else "; pass z.double() for more digits"
        warn(
            f"the inverse of a block is certified to {reached:.3g}, not to {tol:.3g}: the floor "
            f"of {dtype} is {float(floor.max()):.3g} here{more}",
            InversionWarning,
            stacklevel=callers_level(),
        )
