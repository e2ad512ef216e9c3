"""Do the intervals of likelihoods hold the truth as often as they say?

Five small models are trained for a little, and samples of their data get intervals of 95 % by
several estimators. The truth is the density by the dense Jacobian of the whole flow, row by row
from automatic differentiation, in float64. Counted are intervals of single samples, and of means
over 16 and 64 samples; beside them what 1.96 standard errors with the truncation bound would hold,
and errors that were said to be zero and are not.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from iresflow import ImageFlow, Krylov, PowerSeries, VectorFlow
from iresflow.data import load_dataset
from iresflow.logdet import LogDetEstimator
from iresflow.models import Flow, Likelihood

Data = Callable[[int], tuple[Tensor, Tensor | None]]
"""Gives so many samples and their contexts."""

ESTIMATORS: dict[str, LogDetEstimator | None] = {
    "default": None,
    "Krylov, 2 probes": Krylov(probes=2),
    "Krylov, 4 probes": Krylov(probes=4),
    "Krylov, 8 probes": Krylov(probes=8),
    "Krylov, 2 Gaussian": Krylov(probes=2, probe="gaussian"),
    "Krylov, 4 Gaussian": Krylov(probes=4, probe="gaussian"),
    "series, 2 probes": PowerSeries(30, probes=2),
}
GROUPS = (16, 64)
BATCH = 1000
LEVEL = 0.95


def ring(n: int) -> Tensor:
    """Points near the unit circle, ``(n, 2)``."""
    angle = 2 * math.pi * torch.rand(n)
    radius = 1 + 0.1 * torch.randn(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def six(n: int) -> Tensor:
    """A ring and four dependent heavy-tailed variables, ``(n, 6)``."""
    a, b = ring(n), torch.randn(n, 4)
    return torch.cat([a, b * a[:, :1].abs() + 0.3 * b.roll(1, 1) ** 2], 1)


def six_of_a_class(n: int) -> tuple[Tensor, Tensor]:
    """`six` at places and scales that a context moves."""
    context = torch.randn(n, 1)
    return six(n) * (0.5 + context.abs()) + context, context


def digits(n: int) -> Tensor:
    """Random digits, ``(n, 1, 8, 8)``."""
    images = load_dataset("digits").train.values
    return images[torch.randint(len(images), (n,))]


def coarse_digits(n: int) -> Tensor:
    """Every other pixel of digits, with its neighbour as a second channel, ``(n, 2, 4, 4)``."""
    images = digits(n)
    return torch.cat([images[:, :, ::2, ::2], images[:, :, 1::2, 1::2]], 1)


def models() -> dict[str, tuple[Flow, Data]]:
    """The models, untrained, and their data."""
    series = PowerSeries(10)
    small = ImageFlow((1, 8, 8), (1, 1), 8, levels=17, log_det=series)
    scales = ImageFlow((2, 4, 4), (2, 1), 8, levels=17, log_det=series)
    return {
        "2 dimensions": (VectorFlow(2, 3, 16, log_det=series), lambda n: (ring(n), None)),
        "6 dimensions": (VectorFlow(6, 3, 16, log_det=series), lambda n: (six(n), None)),
        "6, conditional": (VectorFlow(6, 3, 16, context_dim=1, log_det=series), six_of_a_class),
        "8 x 8 digits": (small, lambda n: (small.dequantize(digits(n)), None)),
        "2 x 4 x 4 images": (scales, lambda n: (scales.dequantize(coarse_digits(n)), None)),
    }


def train(flow: Flow, data: Data, steps: int) -> Flow:
    """Some steps, after which the branches are far from zero."""
    flow.initialize(*data(512))
    optimizer = torch.optim.Adam(flow.train().parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.log_prob(*data(64)).mean()).backward()
        optimizer.step()
    flow.eval().enforce()
    return flow


def likelihood(
    flow: Flow, x: Tensor, context: Tensor | None, estimator: LogDetEstimator | None
) -> Likelihood:
    """The likelihoods of all samples, batch by batch."""
    results = []
    for first in range(0, len(x), BATCH):
        rows = slice(first, first + BATCH)
        some = None if context is None else context[rows]
        results.append(flow.likelihood(x[rows], some, estimator, seed=0))
    names = vars(results[0])
    return Likelihood(**{name: torch.cat([vars(r)[name] for r in results]) for name in names})


def truth(flow: Flow, x: Tensor, context: Tensor | None) -> Tensor:
    """Log-densities ``(B,)`` by dense Jacobians."""
    if len(x) > BATCH:
        later = None if context is None else context[BATCH:]
        first = truth(flow, x[:BATCH], None if context is None else context[:BATCH])
        return torch.cat([first, truth(flow, x[BATCH:], later)])
    x = x.clone().requires_grad_()
    z = flow.transform(x, context)
    rows = [
        torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0].flatten(1)
        for i in range(z.shape[1])
    ]
    log_det = torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet
    return (flow.base.log_prob(z, context) + log_det).detach()


def part(likely: Likelihood, rows: slice) -> Likelihood:
    """The likelihoods of some samples."""
    return Likelihood(**{name: value[rows] for name, value in vars(likely).items()})


def covered(likely: Likelihood, exact: Tensor) -> Tensor:
    """Which intervals hold the truth, ``(B,)``."""
    low, high = likely.interval(LEVEL)
    return (low <= exact) & (exact <= high)


def row(flow: Flow, x: Tensor, context: Tensor | None, exact: Tensor, name: str) -> str:
    """One line of the table."""
    begin = time.perf_counter()
    likely = likelihood(flow, x, context, ESTIMATORS[name])
    seconds = time.perf_counter() - begin
    error = (likely.log_prob - exact).abs()
    shares = [covered(likely, exact).double().mean()]
    for group in GROUPS:
        starts = range(0, len(x) - group + 1, group)
        hits = [
            covered(part(likely, slice(i, i + group)).mean(), exact[i : i + group].mean())
            for i in starts
        ]
        shares.append(torch.cat(hits).double().mean())
    rest = likely.truncation_bound + likely.rounding
    naive = (error <= 1.96 * likely.standard_error + rest).double().mean()
    wrong = int(((likely.standard_error == 0) & (error > rest)).sum())
    low, high = likely.interval(LEVEL)
    columns = "".join(f"{100 * float(share):8.1f}" for share in [*shares, naive])
    return (
        f"{name:<20}{columns}{wrong:8d}{float((high - low).median() / 2):12.2g}"
        f"{float(error.square().mean().sqrt()):12.2g}{len(x) / seconds:11.0f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16_000, help="for each model")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    print(f"coverage of {LEVEL:.0%} intervals in %, {options.samples} samples of each model")
    print(
        f"{'':<20}{'sample':>8}{'of 16':>8}{'of 64':>8}{'1.96 se':>8}{'zero':>8}"
        f"{'half-width':>12}{'rms error':>12}{'samples/s':>11}"
    )
    for title, (flow, data) in models().items():
        train(flow, data, options.steps)
        x, context = data(options.samples)
        exact = truth(flow, x, context)
        print(title)
        for name in ESTIMATORS:
            print(row(flow, x, context, exact, name), flush=True)


if __name__ == "__main__":
    main()
