"""How many products does a log-determinant take, and how exact are its gradients?

On a trained model and a batch of its test images, with the same probes for all estimators:

1. bits/dim against products for the fixed power series, Krylov (Arnoldi) and Lanczos: true error,
   certified bound, and the length that the worst case of Theorem 5.8 asks for;
2. bias and noise of the gradients at equal numbers of products, against the converged series;
3. what a log-density of an equal certified error costs: processor time of the first setting of
   each estimator that has it, in float32, by the compiled passes.

    python benchmarks/logdet.py runs/0000-mnist-small --root DATA
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import iresflow
from iresflow import ImageFlow, Krylov, Lanczos, Poisson, PowerSeries, RandomSeries
from iresflow.linearization import Linearization
from iresflow.logdet import LogDetEstimate, LogDetEstimator
from iresflow.training.checkpoint import find_checkpoint
from iresflow.training.runs.known_data import load_data

SEED = 1
REFERENCE = PowerSeries(400, tol=1e-12)


def linearizations(flow: ImageFlow, images: Tensor) -> list[Linearization]:
    """The blocks of a flow at a batch of images; with a graph where gradients are on."""
    found: list[Linearization] = []

    def record(linearization: Linearization) -> LogDetEstimate:
        found.append(linearization)
        return PowerSeries(1)(linearization)

    x = flow.dequantize(images, torch.Generator().manual_seed(0))
    flow.bijection(flow.data_map.transform(x), None, record)
    return found


def run(blocks: list[Linearization], estimator: LogDetEstimator) -> list[LogDetEstimate]:
    """One estimate for each block, with probes that depend on the block alone."""
    return [
        estimator(block, torch.Generator().manual_seed(SEED + i)) for i, block in enumerate(blocks)
    ]


def total(estimates: list[LogDetEstimate], name: str) -> Tensor:
    """A field summed over the blocks, ``(B,)``."""
    return torch.stack([getattr(e, name) for e in estimates]).sum(0)


def worst_case_terms(dims: list[int], bounds: list[float], nats: float) -> int:
    """The terms that Theorem 5.8 asks for, summed over blocks of given Lipschitz bounds."""
    for n in range(1, 100_000):
        tails = [
            d * -(math.log1p(-b) + sum(b**k / k for k in range(1, n + 1)))
            for d, b in zip(dims, bounds, strict=True)
        ]
        if sum(tails) <= nats:
            return n
    return 100_000


def products_table(flow: ImageFlow, blocks: list[Linearization], target: float) -> None:
    """Errors against products, and the least products for the target."""
    unit = flow.base_dim * math.log(2)
    with torch.no_grad():
        # The two forms average different quadratic forms to the same log-determinant.
        exact = {
            "value": total(run(blocks, REFERENCE), "value"),
            "lanczos": total(run(blocks, Lanczos(40, 1e-12)), "value"),
        }
        print("estimator            products  mean |error|  certified, bits/dim")
        least: dict[str, tuple[float, float]] = {}

        def row(kind: str, label: str, estimator: LogDetEstimator, shown: bool = True) -> None:
            estimates = run(blocks, estimator)
            reference = exact["lanczos" if isinstance(estimator, Lanczos) else "value"]
            error = float((total(estimates, "value") - reference).abs().mean()) / unit
            bound = float(total(estimates, "truncation").mean()) / unit
            products = float(total(estimates, "products").mean()) / len(blocks)
            measured, certified = least.get(kind, (math.inf, math.inf))
            if error <= target:
                measured = min(measured, products)
            if bound <= target:
                certified = min(certified, products)
            least[kind] = measured, certified
            if shown:
                print(f"{label:<20} {products:8.2f} {error:13.1e} {bound:10.1e}", flush=True)

        for n in [*range(1, 31), 40, 50, 60, 80]:
            shown = n in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 40)
            row("power series", f"{n} terms", PowerSeries(n), shown)
        for n in range(1, 11):
            row("Krylov, fixed steps", f"Krylov, {n} steps", Krylov(n, tol=0))
        for tol in [10.0**-k for k in (2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6)]:
            row("Krylov, each probe's own stop", f"Krylov, tol {tol:.0e}", Krylov(tol=tol))
        for n in range(1, 11):
            row("Lanczos", f"Lanczos, {n} steps", Lanczos(n, tol=0))
    dims = [block.point[0].numel() for block in blocks]
    bounds = [float(block.lipschitz or 0) for block in blocks]
    worst = worst_case_terms(dims, bounds, target * unit)
    print(f"\nproducts for {target:.0e} bits/dim, a probe and block:    measured  certified")
    for kind, (measured, certified) in least.items():
        print(f"  {kind:<48} {measured:8.2f} {certified:10.2f}")
    print(f"  {'power series, Theorem 5.8':<48} {'':8} {worst:10d}")


@torch.no_grad()
def cost_table(flow: ImageFlow, images: Tensor, target: float) -> None:
    """Time of the first setting whose proven bound is below the target, in the mean of images."""
    flow.float()
    iresflow.compile_kernels()
    x = flow.dequantize(images, torch.Generator().manual_seed(0))
    unit = flow.base_dim * math.log(2)
    settings: dict[str, list[LogDetEstimator]] = {
        "power series": [PowerSeries(n) for n in range(4, 100, 2)],
        "Krylov, each probe's own stop": [Krylov(60, tol=10 ** (-k / 4)) for k in range(6, 28)],
        "Lanczos": [Lanczos(n, tol=0) for n in range(2, 40)],
    }
    print(f"\nms a log-density, certified to {target:.0e} bits/dim")
    for kind, estimators in settings.items():
        for estimator in estimators:
            found = flow.likelihood(x, log_det=estimator)
            if float(found.truncation_bound.mean()) <= target * unit:
                took = min(_seconds(flow, x, estimator) for _ in range(5))
                print(f"  {kind:<48} {1e3 * took / len(x):8.2f}   {estimator}", flush=True)
                break


def _seconds(flow: ImageFlow, x: Tensor, estimator: LogDetEstimator) -> float:
    began = time.process_time()
    flow.log_prob(x, log_det=estimator)
    return time.process_time() - began


def gradient_table(blocks: list[Linearization], draws: int) -> None:
    """Bias and noise of the gradient in the weights, relative to the norm of the exact one."""
    pick = [blocks[i] for i in range(0, len(blocks), max(1, len(blocks) // 4))]
    exact = [gradient(b, REFERENCE, draws, i)[0] for i, b in enumerate(pick)]
    cases: dict[str, Callable[[int], LogDetEstimator]] = {
        # One of the products is the tangent of the probe, which each surrogate takes.
        "power series": PowerSeries,
        "random series, Poisson": lambda n: RandomSeries(Poisson(n - 2.0), 2),
        "Krylov": lambda n: Krylov(n - 1, tol=0),
        "Lanczos": lambda n: Lanczos((n - 1) // 2, tol=0),
    }
    print(f"\n{'gradient of':<24} products      bias     noise  (relative; noise of one draw)")
    for products in (3, 5, 7, 9):
        for name, estimator_of in cases.items():
            biases, noises = [], []
            for i, block in enumerate(pick):
                mean, noise = gradient(block, estimator_of(products), draws, i)
                scale = exact[i].norm()
                biases.append(float((mean - exact[i]).norm() / scale))
                noises.append(float(noise / scale))
            bias, noise = sum(biases) / len(pick), sum(noises) / len(pick)
            print(f"{name:<24} {products:8d} {bias:9.1e} {noise:9.2f}", flush=True)


def gradient(
    block: Linearization, estimator: LogDetEstimator, draws: int, index: int
) -> tuple[Tensor, Tensor]:
    """Mean gradient over draws, and the norm of one draw's deviation from it.

    The probes of a draw are the same for all estimators, so that biases show far below the noise.
    """
    links = block._chain.links  # type: ignore[attr-defined]  # which hold the weights
    rounds = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(1000 * index + draw)
        estimate = estimator(block, generator)
        gradients = torch.autograd.grad(
            estimate.surrogate.mean(), [link.weight for link in links], retain_graph=True
        )
        rounds.append(torch.cat([g.flatten() for g in gradients]))
    stacked = torch.stack(rounds)
    mean = stacked.mean(0)
    return mean, (stacked - mean).norm(dim=1).square().mean().sqrt()


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run directory of a trained image model")
    parser.add_argument("--root", help="directory of its data")
    parser.add_argument("--n", type=int, default=100, help="test images")
    parser.add_argument("--draws", type=int, default=20, help="draws of the gradients")
    parser.add_argument("--target", type=float, default=1e-4, help="truncation, bits/dim")
    options = parser.parse_args()
    path = find_checkpoint(options.run)
    flow = iresflow.load(path)
    assert isinstance(flow, ImageFlow)
    images = load_data(options.run, root=options.root).test.values[: options.n]
    flow.double()
    print(
        f"{Path(options.run).name}: {len(images)} test images, {len(list(flow.blocks()))} blocks, "
        f"largest certified Lipschitz bound {flow.certify().largest:.3f}, float64, "
        f"torch {torch.__version__}\n"
    )
    began = time.perf_counter()
    with torch.no_grad():
        blocks = linearizations(flow, images)
    products_table(flow, blocks, options.target)
    gradient_table(linearizations(flow, images[:16]), options.draws)
    cost_table(flow, images, options.target)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
