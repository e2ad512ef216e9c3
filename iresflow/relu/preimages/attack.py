"""Inputs that a layer can't tell apart, though they look different (ICLR version, appendix A7)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from iresflow.errors import LinearProgramError
from iresflow.relu.networks.affine import as_array
from iresflow.relu.networks.network import Layer
from iresflow.relu.preimages.constraints import (
    BOX,
    Between,
    Constraints,
    preimage_constraints,
)
from iresflow.relu.programs import Program, solve

__all__ = ["Attack", "InnerProduct", "Likeness", "Nearest", "invariance_attack"]

SAME = 1e-6
"""Largest difference of identical activations, as a share of the largest pre-activation."""


class Likeness(ABC):
    """What makes an input look like a target."""

    @abstractmethod
    def program(self, constraints: Constraints, target: np.ndarray) -> Program:
        """The program whose solution looks most like a target ``(n,)``."""

    @abstractmethod
    def input_of(self, solution: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The input ``(n,)`` that a solution of the program stands for."""


@final
@dataclass(frozen=True)
class InnerProduct(Likeness):
    """The inner product with the target, as in the paper: only its bright pixels count."""

    def program(self, constraints: Constraints, target: np.ndarray) -> Program:
        matrix, low, high = _rows(constraints)
        return Program(-target, matrix, low, high, constraints.low, constraints.high)

    def input_of(self, solution: np.ndarray, target: np.ndarray) -> np.ndarray:
        return solution


@final
@dataclass(frozen=True)
class Nearest(Likeness):
    """The sum of the absolute differences from the target, which has to obey the prior."""

    def program(self, constraints: Constraints, target: np.ndarray) -> Program:
        if (target < constraints.low).any() or (target > constraints.high).any():
            raise ValueError("the target lies outside of the prior")
        # x = target + p - q with p, q >= 0: twice the unknowns, and not a row more.
        matrix, low, high = _rows(constraints)
        value = matrix @ target
        return Program(
            np.ones(2 * len(target)),
            sparse.hstack([matrix, -matrix], format="csc"),
            low - value,
            high - value,
            0.0,
            np.concatenate([constraints.high - target, target - constraints.low]),
        )

    def input_of(self, solution: np.ndarray, target: np.ndarray) -> np.ndarray:
        up, down = np.split(solution, 2)
        return target + up - down


def _rows(constraints: Constraints) -> tuple[sparse.csc_array, np.ndarray, np.ndarray]:
    """All rows, with their limits."""
    (equal, f), (below, h) = constraints.equal, constraints.below
    matrix = sparse.vstack([sparse.csc_array(equal), sparse.csc_array(below)], format="csc")
    return matrix, np.concatenate([f, np.full(len(h), -np.inf)]), np.concatenate([f, h])


@final
@dataclass(frozen=True, eq=False)
class Attack:
    """An input with the activations of another one.

    Attributes:
        x: The input, ``(n,)``.
        difference: The largest difference of an activation from those of the original.
    """

    x: Tensor
    difference: float


def invariance_attack(
    layer: Layer,
    x: Tensor | np.ndarray,
    target: Tensor | np.ndarray,
    *,
    prior: Between = BOX,
    likeness: Likeness = InnerProduct(),
) -> Attack:
    """An input that a layer can't tell from x, as much like a target as possible.

    A linear program over the preimage of the layer's output at x, within the prior (appendix A7;
    its ``y < 0`` can only mean y = 0).

    Arguments:
        layer: The first layer of a network.
        x: An input, ``(n,)`` or the shape that the layer takes.
        target: Another one, likewise.
        prior: The unit box, for images.
        likeness: What is maximised: `InnerProduct`, or `Nearest`.

    Raises:
        ValueError: shapes that don't fit, values that are not finite, an x outside of the prior.
        LinearProgramError: the solver gave up, or its answer has activations that differ by more
            than 1e-6 of the largest pre-activation in a forward pass.
    """
    size = layer.affine.in_size
    own, wanted = (
        as_array(np.asarray(values).reshape(-1), name, 1)
        for values, name in ((x, "x"), (target, "target"))
    )
    if len(own) != size or len(wanted) != size:
        raise ValueError(f"x and target have {len(own)} and {len(wanted)} entries; allowed {size}")
    low, high = prior.limits(size)
    if (own < low).any() or (own > high).any():
        raise ValueError(f"x lies outside of the prior: from {own.min():.3g} to {own.max():.3g}")
    before = layer.affine(torch.from_numpy(own)[None])[0]
    y = layer.activate(before)
    constraints = preimage_constraints(layer, y, prior)
    unit = constraints.unit
    solution = solve(likeness.program(constraints.normalised(), wanted / unit))
    if solution.x is None:
        raise LinearProgramError(f"the attack's program, which x solves, ended {solution.status}")
    x = unit * likeness.input_of(solution.x, wanted / unit)
    found = torch.from_numpy(np.clip(x, low, high))
    difference = float((layer(found[None])[0] - y).abs().max())
    if not difference <= SAME * float(before.abs().max()):
        raise LinearProgramError(f"the attack's activations differ by {difference:.2g}")
    return Attack(found, difference)
