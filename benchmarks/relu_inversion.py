"""What does the inversion of a layer, and of a network, cost beside plain dense scipy?

Prints, for latent dimensions 10 to 110, the CPU time of our programs and that of the same
programs given to ``scipy.optimize.linprog`` as dense matrices, in turns on the same problems, with
the ratios. "plain" follows the paper step by step: the same thresholds, each program from nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.relu_inversion [--problems 7] [--noise 0.01]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog

from experiments.relu.inversion.experiment import random_network
from iresflow.relu.inversion.layer_programs import InfinityNorm, LayerMethod, OneNorm, Relaxed
from iresflow.relu.inversion.network_inversion import NetworkInversion, invert_network
from iresflow.relu.networks.network import Layer, Network

METHODS: dict[str, LayerMethod] = {
    "l-infinity": InfinityNorm(),
    "l1": OneNorm(),
    "relaxed": Relaxed(),
}


@dataclass
class Plain:
    """One dense program, as the paper writes it."""

    cost: np.ndarray
    rows: np.ndarray
    side: np.ndarray
    bounds: list[tuple[float | None, float | None]]

    def solve(self) -> float:
        result = linprog(self.cost, A_ub=self.rows, b_ub=self.side, bounds=self.bounds)
        if result.status != 0:
            raise RuntimeError(result.message)
        return float(result.fun)


def plain_infinity(weight: np.ndarray, x: np.ndarray, epsilon: float) -> Plain:
    """Minimise delta: |w z - x| <= delta where x > epsilon, w z <= x + delta elsewhere."""
    count, size = weight.shape
    on = x > epsilon
    rows = np.block([
        [weight, -np.ones((count, 1))],
        [-weight[on], -np.ones((int(on.sum()), 1))],
    ])  # fmt: skip
    return Plain(
        np.append(np.zeros(size), 1.0),
        rows,
        np.concatenate([x, -x[on]]),
        [(None, None)] * size + [(0, None)],
    )


def plain_one(weight: np.ndarray, x: np.ndarray, epsilon: float) -> Plain:
    """The same with a slack for each row."""
    count, size = weight.shape
    on = x > epsilon
    slacks = np.eye(count)
    rows = np.block([[weight, -slacks], [-weight[on], -slacks[on]]])
    return Plain(
        np.concatenate([np.zeros(size), np.ones(count)]),
        rows,
        np.concatenate([x, -x[on]]),
        [(None, None)] * size + [(0, None)] * count,
    )


def plain_relaxed(weight: np.ndarray, x: np.ndarray, epsilon: float) -> Plain:
    """Maximise the correlation with max(0, x), subject to w z <= x + epsilon."""
    return Plain(-(x @ weight), weight, x + epsilon, [(None, None)] * weight.shape[1])


PLAIN: dict[str, Callable[[np.ndarray, np.ndarray, float], Plain]] = {
    "l-infinity": plain_infinity,
    "l1": plain_one,
    "relaxed": plain_relaxed,
}


def plain_seconds(network: Network, found: NetworkInversion, name: str) -> float:
    """CPU time of the programs that were solved, given to linprog; checks the values too."""
    began = time.process_time()
    values = [
        PLAIN[name](layer.affine.dense(), np.maximum(x.numpy(), 0), step.epsilon).solve()
        for layer, x, one in zip(
            reversed(network.layers), found.observations, found.layers, strict=True
        )
        for step in one.steps
    ]
    seconds = time.process_time() - began
    ours = [step.objective for one in found.layers for step in one.steps]
    for value, other in zip(values, ours, strict=True):
        # Without noise least squares gives what the relaxed program with epsilon = 0 has.
        if np.isfinite(other) and abs(value - other) > 1e-6 * max(1.0, abs(value)):
            raise RuntimeError(f"{name}: linprog finds {value}, we find {other}")
    return seconds


def measure(
    network: Network, problems: int, noise: float, name: str, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CPU seconds ``(problems,)``: ours, plain, and the number of programs."""
    stream = torch.Generator().manual_seed(seed)
    ours, plain, programs = [], [], []
    for _ in range(problems):
        z = torch.randn(1, network.in_size, generator=stream, dtype=torch.float64)
        x = network(z)[0]
        x = x + noise * (2 * torch.rand(len(x), generator=stream, dtype=torch.float64) - 1)
        began = time.process_time()
        found = invert_network(network, x, METHODS[name], epsilon=noise or None, ranges=False)
        ours.append(time.process_time() - began)
        plain.append(plain_seconds(network, found, name))
        programs.append(sum(len(one.steps) for one in found.layers))
    return np.array(ours), np.array(plain), np.array(programs)


def describe(seconds: np.ndarray) -> str:
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return f"{1000 * middle:8.1f} [{1000 * low:6.1f}, {1000 * high:7.1f}]"


def check_sizes(network: Network) -> tuple[Layer, ...]:
    """The layers; plain programs are written for ReLU without bias."""
    assert all(layer.slope == 0 and not bool(layer.affine.bias.any()) for layer in network.layers)
    return network.layers


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=7, help="of each size and method")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.01], help="half widths")
    parser.add_argument("--latents", type=int, nargs="+", default=[10, 30, 50, 70, 90, 110])
    parser.add_argument("--hidden", type=int, nargs="+", default=[250, 600])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("CPU ms a problem: median [quartiles]; ratio: median and lower quartile\n")
    print(
        f"{'k':>4} {'noise':>6} {'method':<11} {'programs':>8} {'ours':>26} {'plain linprog':>26} "
        f"{'ratio':>7} {'quartile':>9}"
    )
    for k in arguments.latents:
        network = random_network((k, *arguments.hidden), arguments.seed)
        check_sizes(network)
        for noise in arguments.noise:
            for name in arguments.methods:
                ours, plain, programs = measure(
                    network, arguments.problems, noise, name, arguments.seed
                )
                ratios = plain / ours
                print(
                    f"{k:4d} {noise:6g} {name:<11} {np.median(programs):8g} "
                    f"{describe(ours):>26} {describe(plain):>26} "
                    f"{np.median(ratios):7.1f} {np.quantile(ratios, 0.25):9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
