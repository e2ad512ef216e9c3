"""Seconds for a training step, ours and the published reference's, in the same process.

The reference is the residual flow of ``normflows`` (``pip install normflows``), whose blocks are
the code of the Residual Flow paper. Both have the same blocks, channels and batch, ActNorm,
squeeze and Adam, and estimate all norms in each step. Steps alternate, so that all meet the same
machine; the ratio is that of the medians.

    python benchmarks/step.py                   MNIST, digits and CIFAR shapes
    python benchmarks/step.py --only digits --repeats 30
    python benchmarks/step.py --no-reference    without normflows
    python benchmarks/step.py --clock process   seconds of the processor, on a busy machine
"""

import argparse
import logging
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import iresflow
from iresflow.commands.memory import keep_freed_memory
from iresflow.lipschitz.layers import padding
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.passes.kernels import compile_kernels, kernels_compile
from iresflow.logdet import Krylov, LogDetEstimator, PowerSeries, RandomSeries, ReducedPrecision


@dataclass(frozen=True)
class Shape:
    """An architecture and its batch."""

    image: tuple[int, int, int]
    blocks: tuple[int, ...]
    hidden: int
    batch: int


SHAPES = {
    "mnist": Shape((1, 28, 28), (4, 4, 4), 64, 64),
    "digits": Shape((1, 8, 8), (4, 4), 32, 64),
    "cifar": Shape((3, 32, 32), (4, 4, 4), 128, 16),
}

ESTIMATORS: dict[str, LogDetEstimator] = {
    # The reference's settings: 2 exact terms and a Poisson(2) number of further ones.
    "random series": RandomSeries(),
    # Four vector-Jacobian products, as the reference takes them for n_power_series=4.
    "power series, 4 products": PowerSeries(5),
    "the same in bfloat16": ReducedPrecision(PowerSeries(5)),
    # Fewer products for a smaller gradient bias (benchmarks/logdet.py).
    "Krylov, 3 products": Krylov(3, tol=0),
    "Krylov, 2 products": Krylov(2, tol=0),
}

WARM_UP = 4

Step = Callable[[], object]

Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "process": time.process_time}


def our_flow(shape: Shape, log_det: LogDetEstimator, images: Tensor) -> iresflow.ImageFlow:
    """A flow in training mode, initialised."""
    torch.manual_seed(0)
    flow = iresflow.ImageFlow(
        shape.image, shape.blocks, shape.hidden, levels=256, log_det=log_det, factor_out=False
    )
    flow.initialize(images)
    return flow.train()


def our_step(flow: iresflow.ImageFlow, images: Tensor) -> Step:
    """Loss, gradient and optimiser."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = -flow.log_prob(images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Squeeze(nn.Module):
    """Space to depth; normflows' own takes what no multi-scale model here has."""

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As its layers' maps from data to latent are called."""
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))


def reference_layers(shape: Shape, terms: int | None) -> nn.ModuleList:
    """The same architecture of normflows."""
    import normflows as nf

    layers: list[nn.Module] = []
    channels, side = shape.image[:2]
    for level, blocks in enumerate(shape.blocks):
        if level:
            layers.append(Squeeze())
            channels, side = 4 * channels, side // 2
        for _ in range(blocks):
            net = nf.nets.LipschitzCNN(
                [channels, shape.hidden, shape.hidden, channels],
                [3, 1, 3],
                lipschitz_const=0.98,
                init_zeros=False,
            )
            settings = {"n_dist": "poisson", "lamb": 2.0, "n_exact_terms": 2}
            layers.append(nf.flows.ActNorm((channels, side, side)))
            layers.append(nf.flows.Residual(net, n_power_series=terms, **settings))
    return nn.ModuleList(layers).train()


def reference_step(shape: Shape, terms: int | None, images: Tensor) -> Step:
    """The same step with normflows: its five power iterations a layer are a call of their own."""
    import normflows as nf

    layers = reference_layers(shape, terms)
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-4, fused=True)
    alpha = 0.05

    def step() -> None:
        s = alpha + (1 - 2 * alpha) * images
        z, log_det = s.log() - (1 - s).log(), torch.zeros(len(images))
        for layer in layers:
            z, term = layer.inverse(z)
            log_det = log_det + term
        loss = (z.square().flatten(1).sum(1) / 2 - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nf.utils.update_lipschitz(layers, n_iterations=5)

    return step


def timed(function: Step, clock: Clock) -> float:
    """Seconds by a clock."""
    began = clock()
    function()
    return clock() - began


def bare_convolutions(step: Step, clock: Clock) -> float:
    """Seconds for the convolutions of a step and nothing else, by PyTorch, on tensors like theirs.

    The same products, one after another over the whole batch.
    """
    compiled = kernels_compile()
    compile_kernels(False)
    calls: Counter[tuple[str, tuple[tuple[int, ...], ...]]] = Counter()
    kinds = {name: getattr(padding, name) for name in ("convolve_same", "same_weight_gradient")}

    def recording(name: str) -> Callable[..., Tensor]:
        def record(x: Tensor, *rest: object, **named: object) -> Tensor:
            operands = [x, *rest, *named.values()]
            shapes = [getattr(operand, "shape", operand) for operand in operands]
            kept = tuple(tuple(s) for s in shapes if isinstance(s, torch.Size) and len(s) > 1)
            calls[name, kept] += 1
            return kinds[name](x, *rest, **named)

        return record

    with mock.patch.multiple(padding, **{name: recording(name) for name in kinds}):
        step()
    compile_kernels(compiled)
    total = 0.0
    last = torch.channels_last
    for (name, shapes), count in calls.items():
        x, y = (torch.randn(s).contiguous(memory_format=last) for s in shapes[:2])
        rest = [torch.Size(s) for s in shapes[2:]]
        for _ in range(2):
            kinds[name](x, y, *rest)
        convolve = partial(kinds[name], x, y, *rest)
        seconds = [timed(convolve, clock) for _ in range(5)]
        total += count * statistics.median(seconds)
    return total


def norms(flow: iresflow.ImageFlow) -> Step:
    """What estimating the norms takes of a step, without its share of the gradient."""
    layers = [layer for layer in flow.modules() if isinstance(layer, NormalizedLayer)]

    def step() -> None:
        with torch.no_grad():
            for layer in layers:
                layer.normalization.norm(layer, layer.weight, layer.left)

    return step


def compare(name: str, shape: Shape, repeats: int, with_reference: bool, clock: Clock) -> None:
    """Prints the table of one architecture."""
    torch.manual_seed(0)
    images = torch.rand(shape.batch, *shape.image)
    flows = {label: our_flow(shape, e, images) for label, e in ESTIMATORS.items()}
    steps = {label: our_step(flow, images) for label, flow in flows.items()}
    if with_reference:
        steps["normflows, random series"] = reference_step(shape, None, images)
        steps["normflows, 4 products"] = reference_step(shape, 4, images)
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for i in range(repeats + WARM_UP):
        for label, step in steps.items():
            taken = timed(step, clock)
            if i >= WARM_UP:
                seconds[label].append(taken)
    print(f"\n{name}: {shape.blocks} blocks, {shape.hidden} channels, batch {shape.batch}")
    print(f"{'ms a step':<28} {'median':>8} {'least':>8} {'most':>8} {'normflows / this':>18}")
    base = seconds.get("normflows, random series")
    fixed = seconds.get("normflows, 4 products")
    for label, values in seconds.items():
        peer = base if "random" in label or fixed is None else fixed
        middle = statistics.median(values)
        ratio = f"{statistics.median(peer) / middle:18.2f}" if peer else ""
        row = " ".join(f"{1000 * v:8.1f}" for v in (middle, min(values), max(values)))
        print(f"{label:<28} {row} {ratio}", flush=True)
    whole = statistics.median(seconds["power series, 4 products"])
    bare = bare_convolutions(steps["power series, 4 products"], clock)
    estimating = norms(flows["power series, 4 products"])
    norm = statistics.median(timed(estimating, clock) for _ in range(repeats))
    print(
        f"PyTorch's convolutions alone take {1000 * bare:.1f} ms, {100 * bare / whole:.0f} % of "
        f"the step with 4 products; the norms take {1000 * norm:.1f} ms, "
        f"{100 * norm / whole:.0f} %"
    )


def main() -> None:
    """Prints a table for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-compile", action="store_true", help="pointwise kernels unfused")
    args = parser.parse_args()
    logging.basicConfig()
    keep_freed_memory()
    compile_kernels(not args.no_compile)
    peer = ""
    if not args.no_reference:
        from importlib.metadata import version

        peer = f", normflows {version('normflows')}"
    print(
        f"torch {torch.__version__}{peer}, {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}"
    )
    for name in args.only:
        compare(name, SHAPES[name], args.repeats, not args.no_reference, CLOCKS[args.clock])
    print(f"\npointwise kernels were {'compiled' if kernels_compile() else 'not compiled'}")


if __name__ == "__main__":
    main()
