"""Does training exploit the truncation of the power series? Fixed length against a tolerance.

Trains the digits model twice for as many steps, once with a fixed number of series terms and once
with terms added until the last is small, and scores both on the test images with an accurate
series. A model that exploits the truncation believes in fewer bits/dim than it has. Both numbers
are of the same images, noise and probes, so their difference is known better than either.

    python benchmarks/truncation.py
    python benchmarks/truncation.py --steps 20 --every 10
"""

import argparse
import math
from collections.abc import Iterator

import torch

from iresflow import ImageFlow, PowerSeries, compile_kernels
from iresflow.data import load_dataset

BATCH = 64


def train(
    log_det: PowerSeries, seed: int, steps: int, every: int
) -> Iterator[tuple[int, float, float]]:
    """Rows of (step, bits/dim as training sees them, bits/dim accurately) on test images."""
    torch.manual_seed(seed)
    dataset = load_dataset("digits")
    images, held = dataset.train.values, dataset.test.values
    flow = ImageFlow(
        (1, 8, 8), (4, 4), 32, levels=17, coeff=0.98, factor_out=False, log_det=log_det
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    flow.initialize(flow.dequantize(images[:512], generator))
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, step / 100)
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        x = flow.dequantize(batch, generator)
        log_prob = flow.log_prob(x, generator=generator)
        optimizer.zero_grad()
        (-log_prob.mean() / (64 * math.log(2))).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        if step % every == 0:
            flow.eval()
            seen = flow.bits_per_dim(held, log_det=log_det, seed=0)
            accurate = flow.bits_per_dim(held, seed=0)
            flow.train()
            yield step, seen.mean, accurate.mean


def main() -> None:
    """Prints the two runs, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--every", type=int, default=250, help="steps from one row to the next")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and probes")
    options = parser.parse_args()
    compile_kernels()
    cases = {
        "5 terms": PowerSeries(5),
        "tolerance 1e-3": PowerSeries(60, tol=1e-3),
    }
    print("digits, bits/dim of test images; 'seen' by the training estimator\n")
    print(f"{'estimator':<16} {'step':>5} {'seen':>7} {'accurate':>9}")
    for name, estimator in cases.items():
        for step, seen, accurate in train(estimator, options.seed, options.steps, options.every):
            print(f"{name:<16} {step:5d} {seen:7.3f} {accurate:9.3f}", flush=True)


if __name__ == "__main__":
    main()
