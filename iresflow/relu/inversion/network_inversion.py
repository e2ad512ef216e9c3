"""The latent code of a generative ReLU network from its output, one layer at a time.

From the last layer backwards, each input that was found is the observation of the layer before
(Q. Lei, A. Jalal, I. S. Dhillon, A. G. Dimakis, "Inverting Deep Generative Models, One Layer at a
Time", NeurIPS 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final, get_args

import numpy as np
import torch
from torch import Tensor

from iresflow.relu.inversion.layer_inversion import (
    FIRST_EPSILON,
    LayerInversion,
    check_observed,
    check_slope,
    invert_layer,
)
from iresflow.relu.inversion.layer_programs import InfinityNorm, LayerMethod
from iresflow.relu.networks.network import Network
from iresflow.relu.programs import Status
from iresflow.relu.ranks import Verdict

__all__ = ["NetworkInversion", "invert_network"]


@final
@dataclass(frozen=True, eq=False)
class NetworkInversion:
    """What was found of a network's input.

    Attributes:
        status: ``optimal`` if every layer was inverted; else how the failing one ended.
        z: The input found, ``(k,)``; None if a layer failed.
        error: Norm of the network's output there minus the observation, in the method's norm; NaN
            without z.
        determined: ``yes`` if every layer's active rows have full rank; ``no`` if one has not.
        layers: Of the layers inverted, from the last one backwards.
        observations: What each of these was inverted from, ``(n_i,)``.
    """

    status: Status
    z: Tensor | None
    error: float
    determined: Verdict
    layers: tuple[LayerInversion, ...]
    observations: tuple[Tensor, ...]


def invert_network(
    network: Network,
    x: Tensor | np.ndarray,
    method: LayerMethod | None = None,
    *,
    epsilon: float | Sequence[float] | None = None,
    growth: float = 2.0,
    max_steps: int = 20,
    ranges: bool = True,
) -> NetworkInversion:
    """Inverts a network layer by layer, from the last one backwards.

    Arguments:
        network: Layers with negative slopes from 0 to 1.
        x: The observation, ``(n,)``.
        method: `InfinityNorm` (the default), `OneNorm` or `Relaxed`.
        epsilon: The first threshold of each layer, in the order of the network, or that of the
            last layer; then the others are twice the spread that the layer after it left, and for
            `Relaxed` 1e-6 of their observation. See `invert_layer`.
        growth: See `invert_layer`.
        max_steps: Programs of one layer at most.
        ranges: Whether to use that the output of a ReLU is not negative. The paper's programs do
            not; with noise the codes found are better by it.

    Raises:
        ValueError: as `invert_layer`, or another number of thresholds than layers.
        LinearProgramError: HiGHS ended without an answer.
    """
    method = InfinityNorm() if method is None else method
    for layer in network.layers:
        check_slope(layer)
    observation = torch.from_numpy(check_observed(network.layers[-1], x))
    thresholds = _thresholds(network, epsilon)
    found: list[LayerInversion] = []
    observations: list[Tensor] = []
    for index in reversed(range(len(network.layers))):
        above_zero = ranges and index > 0 and network.layers[index - 1].slope == 0
        inversion = invert_layer(
            network.layers[index],
            observation,
            method,
            epsilon=_threshold(thresholds[index], observation, found, method),
            growth=growth,
            max_steps=max_steps,
            lower=0.0 if above_zero else -np.inf,
        )
        found.append(inversion)
        observations.append(observation)
        if inversion.z is None:
            break
        observation = inversion.z
    last = found[-1]
    error = np.nan
    if last.z is not None:
        difference = network(last.z[None])[0] - observations[0]
        error = float(torch.linalg.vector_norm(difference, method.order))
    return NetworkInversion(
        last.status,
        last.z,
        error,
        min((inversion.determined for inversion in found), key=get_args(Verdict).index),
        tuple(found),
        tuple(observations),
    )


def _threshold(
    asked: float | None,
    observation: Tensor,
    found: Sequence[LayerInversion],
    method: LayerMethod,
) -> float | None:
    # The threshold of the relaxed program moves its solution by as much, so it starts from little.
    if asked is not None or not found or not method.fits or not np.isfinite(found[-1].spread):
        return asked
    return max(2 * found[-1].spread, FIRST_EPSILON * float(observation.abs().max()) or 1e-6)


def _thresholds(network: Network, epsilon: float | Sequence[float] | None) -> list[float | None]:
    count = len(network.layers)
    if epsilon is None or isinstance(epsilon, float | int):
        return [None] * (count - 1) + [epsilon]
    if len(epsilon) != count:
        raise ValueError(f"{len(epsilon)} thresholds for {count} layers; allowed is one for each")
    return list(epsilon)
