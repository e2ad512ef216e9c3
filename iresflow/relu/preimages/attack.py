"""Inputs that a layer can't tell apart, though they look different (ICLR version, appendix A7)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from iresflow.errors import LinearProgramError
from iresflow.relu.networks.affine import as_array
from iresflow.relu.networks.network import Layer
from iresflow.relu.preimages.constraints import BOX, Between, System, layer_system
from iresflow.relu.programs import Program, Solved, solve_program

__all__ = ["Attack", "InnerProduct", "Likeness", "Nearest", "invariance_attack"]

SAME = 1e-6
"""Largest difference of activations that count as identical."""


class Likeness(ABC):
    """What makes an input look like a target."""

    @abstractmethod
    def solve(self, system: System, target: np.ndarray) -> Solved:
        """The solution of a system that looks most like a target ``(n,)``."""


@final
@dataclass(frozen=True)
class InnerProduct(Likeness):
    """The inner product with the target, as in the paper: only its bright pixels count."""

    def solve(self, system: System, target: np.ndarray) -> Solved:
        bounds = (system.low, system.high)
        return solve_program(Program(-target, system.below, system.equal, bounds))


@final
@dataclass(frozen=True)
class Nearest(Likeness):
    """The sum of the absolute differences from the target, which has to obey the prior."""

    def solve(self, system: System, target: np.ndarray) -> Solved:
        if (target < system.low).any() or (target > system.high).any():
            raise ValueError("the target lies outside of the prior")
        # x = target + p - q with p, q >= 0: twice the unknowns, and not a row more.
        (equal, equal_side), (below, below_side) = system.equal, system.below
        solved = solve_program(
            Program(
                np.ones(2 * len(target)),
                below=(np.hstack([below, -below]), below_side - below @ target),
                equal=(np.hstack([equal, -equal]), equal_side - equal @ target),
                bounds=(0.0, np.concatenate([system.high - target, target - system.low])),
            )
        )
        if solved.x is None:
            return solved
        up, down = np.split(solved.x, 2)
        return Solved(solved.status, target + up - down, solved.value)


@final
@dataclass(frozen=True, eq=False)
class Attack:
    """An input with the activations of another one.

    Attributes:
        x: The input, ``(n,)``.
        difference: The largest difference of an activation from those of the original.
    """

    x: np.ndarray
    difference: float


def invariance_attack(
    layer: Layer,
    x: np.ndarray | torch.Tensor,
    target: np.ndarray | torch.Tensor,
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
            than 1e-6 in a forward pass.
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
    y = _forward(layer, own)
    solved = likeness.solve(layer_system(layer, y, prior), wanted)
    if solved.x is None:
        raise LinearProgramError(f"the attack's program, which x solves, ended {solved.status}")
    found = np.clip(solved.x, low, high)
    difference = float(np.abs(_forward(layer, found) - y).max())
    if not difference <= SAME:
        raise LinearProgramError(f"the attack's activations differ by {difference:.2g}")
    return Attack(found, difference)


def _forward(layer: Layer, x: np.ndarray) -> np.ndarray:
    return layer(torch.from_numpy(x)[None])[0].numpy()
