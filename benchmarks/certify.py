"""How tight are the certified bounds, what do they cost, and what do they cost in training?

Prints the ratio of each bound to the true norm (ARPACK on the operator), the time to certify
flows of 96 blocks with 512 channels, the time of a training step with either normalisation, what
other methods make of the norms of convolutions, the bounds on large images with borders, and those
of the packaged models by scalings between their layers.

    python benchmarks/certify.py [--run RUN] [--quick]
        [--only tightness scaling certify step overshoot race borders]
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from norm_race import race
from scipy.sparse.linalg import LinearOperator, svds

import iresflow
from iresflow import ImageFlow
from iresflow.lipschitz import DiagonalScaling, NormalizedConv2d, ZeroPadding
from iresflow.lipschitz.bounds.modules import operator_of
from iresflow.lipschitz.bounds.symbol import symbol_norm
from iresflow.training.checkpoint import find_checkpoint


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        sides: Pixels of a side, of the random layers.
        channels: Channels in and out, of the random layers.
        models: Residual blocks of each scale, of the flows that are certified.
        hidden: Their hidden channels.
        trained_blocks: Residual blocks of each scale, of the model of MNIST that is trained.
        steps: Steps that are timed.
        trained: Steps after which norms are compared with the coefficient.
        raced: Channels in and out, and side, of the convolutions that other methods measure, too.
        bordered: Channels and kernel side of those on large images, and the side of these.
        scaled: Packaged models whose branches are bounded by scalings.
        searched: Steps of the search for those.
    """

    sides: tuple[int, ...] = (7, 8, 14, 28, 32)
    channels: tuple[tuple[int, int], ...] = (
        (1, 32),
        (3, 32),
        (4, 32),
        (12, 64),
        (16, 32),
        (48, 64),
        (64, 512),
    )
    models: tuple[tuple[int, ...], ...] = ((32, 32, 32), (96,))
    hidden: int = 512
    trained_blocks: tuple[int, ...] = (0, 8, 4)
    steps: int = 30
    trained: int = 150
    raced: tuple[tuple[int, int, int], ...] = ((3, 32, 16), (16, 16, 8), (16, 16, 14))
    bordered: tuple[tuple[int, int, int], ...] = (
        (16, 3, 96),
        (32, 3, 96),
        (16, 5, 96),
        (64, 3, 64),
    )
    scaled: tuple[str, ...] = ("digits", "mnist", "two-moons")
    searched: int = 100


QUICK = Sizes(
    (7, 14),
    ((1, 32), (4, 32)),
    ((1, 1, 1), (2,)),
    16,
    (0, 1, 1),
    steps=1,
    trained=1,
    raced=((3, 4, 6),),
    bordered=((2, 3, 12),),
    scaled=("two-moons",),
    searched=5,
)
"""Within seconds, to see that all of it works."""

PARTS = ("tightness", "scaling", "certify", "step", "overshoot", "race", "borders")


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


def tightness(sizes: Sizes, run: str | None) -> None:
    """Random layers by size and channels, and the trained ones of a run."""
    head = f"{'norm':>9} {'fourier %':>9} {'bound %':>9}  {'method':<8} {'ms':>8}"
    print(f"\nbounds of zero-padded 3 x 3 layers, percent above the norm\n\n{'layer':<24} {head}")
    torch.manual_seed(0)
    for side in sizes.sides:
        for inputs, outputs in sizes.channels:
            if inputs * side * side > 16_384:
                continue
            layer = NormalizedConv2d(
                inputs, outputs, 3, (side, side), padding=ZeroPadding(), coeff=0.9
            )
            name = f"random {side} x {side}, {inputs} -> {outputs}"
            print_row(name, layer, torch.randn_like(layer.weight))
    if run is not None:
        for name, block in iresflow.load(find_checkpoint(run)).blocks():
            for i, layer in enumerate(block.branch.layers):
                if isinstance(layer, NormalizedConv2d) and not layer.pointwise:
                    print_row(f"{name}.{i}", layer, layer.weight)


def certify(sizes: Sizes) -> None:
    """The time to enforce and certify large flows."""
    print(f"\nseconds to enforce and certify flows with {sizes.hidden} hidden channels\n")
    print(f"{'blocks':<10} {'images':<24} {'wall':>6} {'CPU':>6}  largest bound")
    for blocks in sizes.models:
        images = ", ".join(f"{32 >> i} x {32 >> i}" for i in range(len(blocks)))
        flow = ImageFlow((3, 32, 32), blocks, sizes.hidden, factor_out=False).eval()
        wall, cpu = time.perf_counter(), time.process_time()
        certificate = flow.enforce()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{sum(blocks):<10} {images:<24} {wall:6.1f} {cpu:6.1f}  {certificate.largest:.6f}",
            flush=True,
        )


def small_flow(blocks: tuple[int, ...], normalization: str) -> ImageFlow:
    """A model of MNIST with branches 3-1-3 and LipSwish, newly initialised."""
    torch.manual_seed(0)
    flow = ImageFlow(
        (1, 28, 28),
        blocks,
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


def steps(blocks: tuple[int, ...], count: int) -> None:
    """Step times in turns, so that whatever else runs on the machine slows both."""
    print("\nmedian and least CPU time of a training step of a model of MNIST, in ms\n")
    flows = {name: small_flow(blocks, name) for name in ("power-iteration", "certified")}
    optimizers = {name: torch.optim.Adam(f.parameters(), 5e-3) for name, f in flows.items()}
    times: dict[str, list[float]] = {name: [] for name in flows}
    for _ in range(count):
        for name, flow in flows.items():
            times[name].append(1000 * step(flow, optimizers[name]))
    for name, values in times.items():
        print(f"{name:<16} {statistics.median(values):7.1f} {min(values):7.1f}")


def overshoot(blocks: tuple[int, ...], count: int) -> None:
    """How far the norms are from the coefficient while power iteration trains."""
    print(f"\nnorm over coefficient of the layers that {count} steps have normalised\n")
    for name in ("power-iteration", "bidiagonalization", "certified"):
        flow = small_flow(blocks, name)
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


def borders(layers: tuple[tuple[int, int, int], ...]) -> None:
    """Bounds on large images that are extended by their own pixels, over estimates from below."""
    print("\nbounds over estimates; extended: that of the symbol times the extension's norm\n")
    print(f"{'layer':<32} {'bound':>6} {'extended':>8}  method")
    torch.manual_seed(0)
    for channels, side, pixels in layers:
        for mode in ("reflect", "replicate"):
            layer = torch.nn.Conv2d(
                channels, channels, side, padding=side // 2, padding_mode=mode, bias=False
            )
            bound = iresflow.norm_bound(layer, pixels)
            extended = float(operator_of(layer, pixels).smooth_bound(layer.weight.detach()))
            name = f"{channels} channels, {side} x {side}, {mode}"
            ratios = (bound.upper / bound.estimate, extended / bound.estimate)
            print(f"{name:<32} {ratios[0]:6.3f} {ratios[1]:8.3f}  {bound.method}", flush=True)


def scaling(names: tuple[str, ...], steps: int) -> None:
    """By how much the blocks' bounds are smaller by scalings than by products of norms."""
    print("\nbranches by scalings, over the product of norms: least, mean, largest, s a block")
    for name in names:
        flow = iresflow.pretrained(name)
        product = [block.bound.upper for block in flow.certify()]
        began = time.process_time()
        scaled = [block.bound.upper for block in flow.certify(bound=DiagonalScaling(steps))]
        seconds = (time.process_time() - began) / len(scaled)
        for kind, uppers in (("product", product), ("scaled", scaled)):
            spread = min(uppers), statistics.mean(uppers), max(uppers)
            print(f"{name:10} {kind:8} " + " ".join(f"{upper:.4f}" for upper in spread))
        ratios = [a / b for a, b in zip(scaled, product, strict=True)]
        spread = min(ratios), statistics.mean(ratios), max(ratios)
        shown = " ".join(f"{ratio:.4f}" for ratio in spread)
        print(f"{name:10} {'ratio':8} {shown} {seconds:6.2f}")


def main() -> None:
    """Prints the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", help="a run or checkpoint whose trained layers are measured too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="small sizes, within seconds")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    if "tightness" in arguments.only:
        tightness(sizes, arguments.run)
    if "scaling" in arguments.only:
        scaling(sizes.scaled, sizes.searched)
    if "certify" in arguments.only:
        certify(sizes)
    if "step" in arguments.only:
        steps(sizes.trained_blocks, sizes.steps)
    if "overshoot" in arguments.only:
        overshoot(sizes.trained_blocks, sizes.trained)
    if "race" in arguments.only:
        race(sizes.raced)
    if "borders" in arguments.only:
        borders(sizes.bordered)


if __name__ == "__main__":
    main()
