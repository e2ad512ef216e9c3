"""Does training exploit the truncation of the power series? Fixed length against a tolerance.

Trains the digits model twice for as many steps, once with a fixed number of series terms and once
with terms added until the last is small, and scores both on the test images with an accurate
series. A model that exploits the truncation believes in fewer bits/dim than it has. Both numbers
are of the same images, noise and probes, so their difference is known better than either.

    python benchmarks/truncation.py
    python benchmarks/truncation.py --steps 20 --every 10

With the checkpoint of a trained flow of images it compares estimators on that flow: by how much it
would be believed to be better than it is, the gradient's error, and the time of a step:

    python benchmarks/truncation.py --model RUN/checkpoints/last.pt --data mnist --root DIR
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

import iresflow
from iresflow import ImageFlow, Krylov, PowerSeries, RandomSeries, compile_kernels
from iresflow.data import load_dataset
from iresflow.logdet import LogDetEstimator

BATCH = 64

ESTIMATORS: dict[str, LogDetEstimator] = {
    "5 terms": PowerSeries(5),
    "10 terms": PowerSeries(10),
    "60 terms at most, tol 1e-3": PowerSeries(60, tol=1e-3),
    "200 terms at most, tol 1e-3": PowerSeries(200, tol=1e-3),
    "Poisson lengths": RandomSeries(),
    "4 Krylov steps": Krylov(4, tol=0),
    "Krylov, tol 1e-2": Krylov(tol=1e-2),
    "Krylov, tol 1e-3": Krylov(tol=1e-3),
    "Krylov, tol 1e-4": Krylov(tol=1e-4),
}
"""What is compared on a trained flow."""


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


def score(model: str, data: str, root: str | None, count: int) -> None:
    """Prints what estimators tell of a trained flow: value, gradient and time of a step."""
    flow = iresflow.load(model)
    assert isinstance(flow, ImageFlow)
    images = load_dataset(data, root).train.values[:count]
    state = copy.deepcopy(flow.state_dict())

    def step(estimator: LogDetEstimator) -> tuple[float, Tensor, float]:
        """Bits/dim but for the noise's own, their gradient, and seconds of one thread's time."""
        flow.load_state_dict(state)
        flow.train().zero_grad()
        flow.log_det = estimator
        generator, start = torch.Generator().manual_seed(0), time.process_time()
        bits = flow.log_prob(flow.dequantize(images, generator), generator=generator)
        loss = -bits.mean() / (images[0].numel() * math.log(2))
        loss.backward()
        seconds = time.process_time() - start
        gradient = [p.grad.flatten() for p in flow.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradient), seconds

    accurate, gradient, _ = step(Krylov(40, tol=0))
    print(f"{count} images, in training mode; errors are distances to 40 steps of Krylov\n")
    print(f"{'estimator':<30} {'bits/dim':>8} {'of the gradient':>16} {'ms a step':>10}")
    for name, estimator in ESTIMATORS.items():
        bits, ours, seconds = step(estimator)
        distance = float((ours - gradient).norm() / gradient.norm())
        print(
            f"{name:<30} {bits - accurate:8.4f} {distance:16.4f} {1e3 * seconds:10.0f}", flush=True
        )


def main() -> None:
    """Prints the two runs, one after the other, or the scores of a trained flow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--every", type=int, default=250, help="steps from one row to the next")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and probes")
    parser.add_argument("--model", help="file or checkpoint of a trained flow of images")
    parser.add_argument("--data", default="digits", help="what it was trained on")
    parser.add_argument("--root", help="where that lies")
    parser.add_argument("--images", type=int, default=32, help="that are scored")
    options = parser.parse_args()
    compile_kernels()
    if options.model:
        score(options.model, options.data, options.root, options.images)
        return
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
