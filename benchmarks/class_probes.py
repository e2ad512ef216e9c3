"""Whether the classes of a sample should share their probes: errors of what decides between them.

Trains a small flow of classes on the digits, and compares log-densities given each class with
exact ones (by dense Jacobians): with probes of its own for each class, as `likelihood` draws them,
and with common ones, as `classify` does. Then the intervals of what decides: from the terms of the
probes in pairs, as `classify` has them, and from the intervals of each class by itself.

    python benchmarks/class_probes.py
"""

import argparse

import torch
from torch import Tensor

from iresflow import Exact, ImageFlow, Krylov, PowerSeries, compile_kernels, fit
from iresflow.data import load_dataset
from iresflow.training.objectives.generative import Generative

PROBES = (1, 8)
LEVEL = 0.95


def trained(steps: int, seed: int) -> ImageFlow:
    """A flow of the ten digits, in float64."""
    torch.manual_seed(seed)
    train = load_dataset("digits").train
    flow = ImageFlow(
        (1, 8, 8),
        (1, 2, 1),
        24,
        levels=17,
        context_dim=10,
        factor_out=False,
        log_det=PowerSeries(8, tol=1e-2),
    )
    options = {"batch_size": 64, "learning_rate": 5e-3, "bar": False}
    fit(
        flow,
        train.values,
        train.labels,
        validation=None,
        steps=steps,
        objective=Generative(),
        **options,
    )
    return flow.double()


def of_classes(
    flow: ImageFlow, x: Tensor, estimator: Exact | Krylov, seed: int, common: bool
) -> Tensor:
    """Log-densities ``(B, 10)`` given each class."""
    if common:
        return flow.classify(x, log_det=estimator, seed=seed).log_prob
    rows = torch.eye(10, dtype=x.dtype)
    columns = [flow.likelihood(x, row[None], estimator, seed=seed).log_prob for row in rows]
    return torch.stack(columns, dim=1)


def intervals(
    flow: ImageFlow, x: Tensor, exact: Tensor, estimator: Krylov, draws: int
) -> dict[str, Tensor]:
    """Of intervals of the differences to the best class: median half, decided, share that hold."""
    rows = torch.eye(10, dtype=x.dtype)
    told: dict[str, list[Tensor]] = {"in pairs": [], "each class by itself": []}
    for seed in range(draws):
        found = flow.classify(x, log_det=estimator, seed=seed, level=LEVEL)
        best = found.classes[:, None]
        others = torch.ones_like(exact, dtype=torch.bool).scatter(1, best, False)
        off = (found.log_odds - (exact - exact.gather(1, best))).abs()
        alone = torch.stack(
            [
                flow.likelihood(x, row[None], estimator, seed=seed).half_width(
                    1 - (1 - LEVEL) / 10
                )
                for row in rows
            ],
            dim=1,
        )
        halves = found.log_odds_error, alone + alone.gather(1, best)
        for numbers, half in zip(told.values(), halves, strict=True):
            decided = (found.log_odds + half < 0) | ~others
            held = (off <= half) | ~others
            shares = [mask.all(1).double().mean() for mask in (decided, held)]
            numbers.append(torch.stack([half[others].median(), *shares]))
    return {name: torch.stack(numbers).mean(0) for name, numbers in told.items()}


def root_mean_square(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def main() -> None:
    """Prints a row for each number of probes and each kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=250, help="of the training")
    parser.add_argument("--n", type=int, default=32, help="test images")
    parser.add_argument("--draws", type=int, default=12, help="of the probes")
    parser.add_argument("--seed", type=int, default=0, help="of weights and noise")
    options = parser.parse_args()
    compile_kernels()
    flow = trained(options.steps, options.seed)
    noise = torch.Generator().manual_seed(options.seed)
    x = flow.dequantize(load_dataset("digits").test.values[: options.n], noise)
    exact = of_classes(flow, x, Exact(), 0, common=True)
    two = exact.topk(2, dim=1).indices
    print("errors in nats, root mean squares\n")
    print(f"{'probes':>6}  {'of a sample':<16} {'a log-density':>13} {'two best, apart':>15}")
    for probes in PROBES:
        for common in (False, True):
            found = torch.stack(
                [
                    of_classes(flow, x, Krylov(tol=1e-6, probes=probes), seed, common)
                    for seed in range(options.draws)
                ]
            )
            off = found - exact
            pair = off.gather(2, two.expand(options.draws, -1, -1))
            kind = "common" if common else "each class' own"
            apart = root_mean_square(pair[..., 0] - pair[..., 1])
            print(f"{probes:6d}  {kind:<16} {root_mean_square(off):13.3f} {apart:15.3f}")
    print(
        f"\n{PROBES[-1]} probes: intervals at level {LEVEL} of the differences to the best class\n"
    )
    print(f"{'from the errors':<20} {'half, median':>12} {'decided':>8} {'hold':>7}")
    several = Krylov(tol=1e-6, probes=PROBES[-1])
    for name, numbers in intervals(flow, x, exact, several, options.draws).items():
        half, decided, held = numbers.tolist()
        print(f"{name:<20} {half:12.3f} {decided:8.1%} {held:7.1%}")


if __name__ == "__main__":
    main()
