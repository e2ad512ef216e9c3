"""How tight are the certified bounds, what do they cost, and what do they cost in training?

Prints the ratio of each bound to the true norm (ARPACK on the operator), the time to certify
flows of 96 blocks with 512 channels, and the time of a training step with either normalisation.

    python benchmarks/certify.py [--run CHECKPOINT] [--only tightness certify step overshoot]
"""

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, svds

import iresflow
from iresflow import ImageFlow
from iresflow.lipschitz import NormalizedConv2d, ZeroPadding
from iresflow.lipschitz.bounds.symbol import symbol_norm

SIZES = (7, 8, 14, 28, 32)
CHANNELS = ((1, 32), (3, 32), (4, 32), (12, 64), (16, 32), (48, 64), (64, 512))
PARTS = ("tightness", "certify", "step", "overshoot")


def true_norm(weight: torch.Tensor, size: tuple[int, int]) -> float:
    """The largest singular value of a zero-padded convolution, by ARPACK."""
    weight = weight.detach().double()
    outputs, inputs, side, _ = weight.shape
    pixels = size[0] * size[1]

    def forward(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(x).reshape(1, inputs, *size)
        return F.conv2d(image, weight, padding=side // 2).numpy().ravel()

    def backward(y: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(y).reshape(1, outputs, *size)
        return F.conv_transpose2d(image, weight, padding=side // 2).numpy().ravel()

    operator = LinearOperator(
        (outputs * pixels, inputs * pixels), forward, backward, dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(min(operator.shape))
    return float(svds(operator, k=1, v0=start, tol=1e-7, return_singular_vectors=False)[0])


def print_row(name: str, layer: NormalizedConv2d, weight: torch.Tensor) -> None:
    """One layer's bounds over its norm, in percent above it, and what the tightest one took."""
    norm = true_norm(weight, layer.image_size)
    grids = layer.padding.grids(layer.image_size, layer.kernel_size)
    fourier = float(symbol_norm(weight.detach(), grids)[0])
    began = time.perf_counter()
    bound = layer.tight_bound(weight, layer.left)
    seconds = time.perf_counter() - began
    print(
        f"{name:<24} {norm:9.5f} {100 * (fourier / norm - 1):9.3f} "
        f"{100 * (bound.upper / norm - 1):9.4f}  {bound.method:<8} {1000 * seconds:8.0f}",
        flush=True,
    )


def tightness(run: str | None) -> None:
    """Random layers by size and channels, and the trained ones of a run."""
    head = f"{'norm':>9} {'fourier %':>9} {'bound %':>9}  {'method':<8} {'ms':>8}"
    print(f"\nbounds of zero-padded 3 x 3 layers, percent above the norm\n\n{'layer':<24} {head}")
    torch.manual_seed(0)
    for side in SIZES:
        for inputs, outputs in CHANNELS:
            if inputs * side * side > 16_384:
                continue
            layer = NormalizedConv2d(
                inputs, outputs, 3, (side, side), padding=ZeroPadding(), coeff=0.9
            )
            name = f"random {side} x {side}, {inputs} -> {outputs}"
            print_row(name, layer, torch.randn_like(layer.weight))
    if run is not None:
        for name, block in iresflow.load(run).blocks():
            for i, layer in enumerate(block.branch.layers):
                if isinstance(layer, NormalizedConv2d) and not layer.pointwise:
                    print_row(f"{name}.{i}", layer, layer.weight)


def certify() -> None:
    """The time to enforce and certify large flows."""
    print("\ntime to enforce and certify 96 blocks with 512 channels, in seconds\n")
    print(f"{'images':<24} {'wall':>6} {'CPU':>6}  largest bound")
    for name, blocks in (("32 x 32, 16 x 16, 8 x 8", (32, 32, 32)), ("32 x 32 only", (96,))):
        flow = ImageFlow((3, 32, 32), blocks, 512, factor_out=False).eval()
        wall, cpu = time.perf_counter(), time.process_time()
        certificate = flow.enforce()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{name:<24} {wall:6.1f} {cpu:6.1f}  {certificate.largest:.6f}", flush=True)


def small_flow(normalization: str) -> ImageFlow:
    """The model of configs/mnist-small.yaml, newly initialised."""
    torch.manual_seed(0)
    flow = ImageFlow(
        (1, 28, 28),
        (0, 8, 4),
        32,
        coeff=0.98,
        normalization=normalization,
        factor_out=False,
        alpha=1e-6,
        log_det=iresflow.PowerSeries(60, tol=1e-3),
    )
    flow.initialize(flow.dequantize(blobs(512)))
    return flow.train()


def blobs(count: int) -> torch.Tensor:
    """Grey images of smooth random shapes on black, somewhat like digits."""
    noise = F.interpolate(torch.randn(count, 1, 7, 7), (28, 28), mode="bicubic")
    return (255 * noise.clamp(0, 1)).to(torch.uint8)


def step(flow: ImageFlow, optimizer: torch.optim.Optimizer) -> float:
    """Trains on one batch of 32; seconds of CPU time, which other processes hardly move."""
    x = flow.dequantize(blobs(32))
    began = time.process_time()
    optimizer.zero_grad()
    (-flow.log_prob(x).mean() / 784).backward()
    torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
    optimizer.step()
    return time.process_time() - began


def steps(count: int = 30) -> None:
    """Step times in turns, so that whatever else runs on the machine slows both."""
    print("\nmedian and least CPU time of a step of configs/mnist-small.yaml, in ms\n")
    flows = {name: small_flow(name) for name in ("power-iteration", "certified")}
    optimizers = {name: torch.optim.Adam(f.parameters(), 5e-3) for name, f in flows.items()}
    times: dict[str, list[float]] = {name: [] for name in flows}
    for _ in range(count):
        for name, flow in flows.items():
            times[name].append(1000 * step(flow, optimizers[name]))
    for name, values in times.items():
        print(f"{name:<16} {statistics.median(values):7.1f} {min(values):7.1f}")


def overshoot(count: int = 150) -> None:
    """How far the norms are from the coefficient while power iteration trains."""
    print(f"\nnorm over coefficient of the layers that {count} steps have normalised\n")
    for name in ("power-iteration", "bidiagonalization", "certified"):
        flow = small_flow(name)
        optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
        for _ in range(count):
            step(flow, optimizer)
        flow(flow.dequantize(blobs(32)))  # normalises the weights as the next step would
        ratios = [
            layer.bound().upper / layer.coeff
            for _, block in flow.blocks()
            for layer in block.branch.layers
        ]
        print(
            f"{name:<16} least {min(ratios):.4f}  median {statistics.median(ratios):.4f}  "
            f"largest {max(ratios):.4f}"
        )


def main() -> None:
    """Prints the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a run or checkpoint whose trained layers are measured too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    if "tightness" in arguments.only:
        tightness(arguments.run)
    if "certify" in arguments.only:
        certify()
    if "step" in arguments.only:
        steps()
    if "overshoot" in arguments.only:
        overshoot()


if __name__ == "__main__":
    main()
