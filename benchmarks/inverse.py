"""What an inverse costs: the solvers on trained models, and a race against normflows.

For each model and solver, with its compiled iteration or by the driver of all solvers: evaluations
of each residual branch, linearizations and products with its Jacobian, for each sample and block;
the seconds of the processor, over all threads, that the whole inverse takes (with its certificate,
and its residual, measured by a forward pass in float64), samples a second of them, and the largest
certified error of a block.

The race is against the fixed-point inverse of `normflows` (the published implementation of
residual flows) on the same blocks: same architecture, same weights, same latents, same threads, in
turns. It has no certificate, so its error is measured against our inverse. It is timed without the
log-determinant, and with it, as its flows compute it whenever they sample.

With ``--least``, a last row says how few evaluations could do: those after which the smallest
residual of any combination of all evaluations so far (GMRES, by scipy, with the Jacobian at the
solution, so as if the branch were linear) is small enough to certify. No method that starts at y
and combines what evaluations returned needs fewer of such a branch.

Without runs, small models are trained on the digits first, one for each coefficient.

    python benchmarks/inverse.py
    python benchmarks/inverse.py runs/0000-mnist-small --n 100
    OMP_NUM_THREADS=1 python benchmarks/inverse.py --pretrained mnist digits --no-race --least
"""

import argparse
import copy
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor, nn

import iresflow
from iresflow import (
    Anderson,
    Broyden,
    FixedPoint,
    Flow,
    ImageFlow,
    PowerSeries,
    compile_kernels,
)
from iresflow.bijections import Accuracy, ResidualBlock, branch_block
from iresflow.commands.memory import keep_freed_memory
from iresflow.data import load_dataset
from iresflow.lipschitz import LipSwish
from iresflow.models.inversion import FlowInverse
from iresflow.solvers import Solver
from iresflow.training.checkpoint import find_checkpoint, load_model


@dataclass(frozen=True)
class Case:
    """A solver, and whether it has a compiled iteration."""

    solver: Solver
    iterations: bool = True


CASES = {
    "fixed point": Case(FixedPoint()),
    "fixed point, driver": Case(FixedPoint(), iterations=False),
    "Broyden, driver": Case(Broyden(), iterations=False),
    "Anderson, driver": Case(Anderson(), iterations=False),
    "Anderson (default)": Case(Anderson()),
}


@contextmanager
def compiled(iterations: bool) -> Iterator[None]:
    """With compiled iterations, or with the driver of all solvers, whose branches are compiled."""
    own = branch_block.fused_solve
    if not iterations:
        branch_block.fused_solve = lambda maps, y, iteration: None
    try:
        yield
    finally:
        branch_block.fused_solve = own


def in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds that calls take, one after another and all over again, after one of each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if repeat:
                seconds[name].append(time.process_time() - started)
    return seconds


def spread(seconds: list[float]) -> str:
    """Median, and from the fastest to the slowest."""
    middle = statistics.median(seconds)
    return f"{middle:7.3f} ({min(seconds):.3f} .. {max(seconds):.3f})"


def inverted(flow: Flow, z: Tensor, case: Case) -> FlowInverse:
    """By one of `CASES`."""
    with compiled(case.iterations):
        return flow.invert(z, None, Accuracy(solver=case.solver))


@contextmanager
def recorded(flow: Flow) -> Iterator[list[tuple[ResidualBlock, Tensor, Tensor]]]:
    """The blocks that are inverted meanwhile, each with its y and its solution x."""
    seen: list[tuple[ResidualBlock, Tensor, Tensor]] = []

    def recording(block: ResidualBlock) -> Callable:
        plain = block.invert

        def invert(y: Tensor, *rest: object) -> object:
            result = plain(y, *rest)
            seen.append((block, y, result.value))
            return result

        return invert

    blocks = [block for _, block in flow.blocks()]
    for block in blocks:
        block.invert = recording(block)
    try:
        yield seen
    finally:
        for block in blocks:
            del block.invert


def least(block: ResidualBlock, y: Tensor, x: Tensor, tol: float) -> list[int]:
    """Evaluations that a linear branch would need at least, for each sample."""
    branch = copy.deepcopy(block.branch).double()
    lipschitz = block.branch.bound().upper
    enough = tol * (1 - lipschitz) / lipschitz
    counts = []
    for target, solution in zip(y.double(), x.double(), strict=True):
        size = target.numel()

        def multiply(vector: np.ndarray, x: Tensor = solution) -> Tensor:
            v = torch.from_numpy(vector).view_as(x)
            _, product = torch.func.jvp(lambda x: branch(x[None])[0], (x,), (v,))
            return (v + product).flatten()

        matrix = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
        residuals: list[float] = []
        right = matrix.matvec((solution - target).flatten().numpy())
        _, failed = gmres(
            matrix,
            right,
            rtol=0.0,
            atol=enough,
            restart=size,
            callback=residuals.append,
            callback_type="pr_norm",
        )
        assert not failed
        counts.append(1 + len(residuals))  # the first evaluation is that of the start
    return counts


def compare(name: str, flow: Flow, z: Tensor, repeats: int, bound: bool) -> None:
    """A row for each case, and with a bound, one for the least that could do."""
    blocks = [block for _, block in flow.blocks()]
    largest = max(block.branch.bound().upper for block in blocks)
    calls = {case: partial(inverted, flow, z, CASES[case]) for case in CASES}
    seconds = in_turns(calls, repeats)
    results = {case: call() for case, call in calls.items()}
    evaluations = {
        case: float(result.steps.double().mean()) / len(blocks) for case, result in results.items()
    }
    for case, times in seconds.items():
        base, middle = evaluations["fixed point"], statistics.median(times)
        plain = statistics.median(seconds["fixed point"])
        print(
            f"{name:<16} {largest:7.4f}  {case:<24} {evaluations[case]:7.2f} "
            f"{evaluations[case] / base:6.2f}   {spread(times)} {middle / plain:6.2f} "
            f"{len(z) / middle:9.0f}   {float(results[case].block_error.max()):.1e}",
            flush=True,
        )
    if bound:
        with recorded(flow) as seen:
            flow.invert(z)
        counts = [count for b, y, x in seen for count in least(b, y, x, Accuracy().tol)]
        mean = statistics.mean(counts)
        print(
            f"{name:<16} {largest:7.4f}  {'evaluations alone':<24} {mean:7.2f} "
            f"{mean / evaluations['fixed point']:6.2f}",
            flush=True,
        )


def reference(block: ResidualBlock, shape: tuple[int, ...]) -> torch.nn.Module:
    """The block of normflows with the same weights, its norms estimated for long enough."""
    import normflows
    from normflows.nets.lipschitz import LipschitzCNN

    branch = block.branch
    layers = list(branch.layers)
    channels = [layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers)]
    sides = [layer.kernel_size for layer in layers]
    # Their weights are divided by what exceeds the coefficient; ours are below it already.
    net = LipschitzCNN(channels, sides, lipschitz_const=0.999, init_zeros=False)
    net(torch.zeros(1, *shape))
    convolutions = [m for m in net.net if hasattr(m, "weight")]
    swishes = [m for m in net.net if not hasattr(m, "weight")]
    for ours, theirs in zip(layers, convolutions, strict=True):
        theirs.weight.data.copy_(ours.normalized_weight())
        theirs.bias.data.copy_(ours.bias)
        theirs.compute_weight(True, n_iterations=100)
    for ours, theirs in zip(branch.activations, swishes, strict=True):
        if hasattr(ours, "raw_beta"):
            theirs.beta.data.copy_(ours.raw_beta)
    if not hasattr(branch.activations[0], "raw_beta"):
        net.net = net.net[1:]
    return normflows.flows.Residual(net, reverse=False).iresblock.eval()


def race(name: str, flow: Flow, z: Tensor, repeats: int) -> None:
    """The reference against us, on the inputs that the blocks have in our inverse."""
    blocks = [block for _, block in flow.blocks()]
    if not all(
        isinstance(a, LipSwish | nn.Identity) for b in blocks for a in b.branch.activations
    ):
        print(f"\n{name}: normflows has LipSwish alone; train with --model.activation lipswish")
        return
    with recorded(flow) as seen:
        ours = flow.invert(z)
    peers = [(reference(b, tuple(y.shape[1:])), y.to(z.dtype), x) for b, y, x in seen]
    evaluations = [0]
    for peer, y, _ in peers:
        peer.nnet.register_forward_hook(lambda *_: evaluations.__setitem__(0, evaluations[0] + 1))
        mine = next(b for b, v, _ in seen if torch.equal(v.to(z.dtype), y))
        assert torch.allclose(peer.nnet(y), mine.branch(y), atol=1e-3), "not the same map"
    start = torch.zeros(len(z), 1)
    calls = {
        "iresflow, certified": lambda: flow.invert(z),
        "normflows, x alone": lambda: [peer.inverse(y) for peer, y, _ in peers],
        "normflows, as it samples": lambda: [peer.inverse(y, start) for peer, y, _ in peers],
    }
    seconds = in_turns(calls, repeats)
    evaluations[0] = 0
    errors = [(peer.inverse(y).double() - x).flatten(1).norm(dim=1).max() for peer, y, x in peers]
    print(f"\n{name}: {len(z)} samples, {len(peers)} blocks")
    details = {
        "iresflow, certified": f"certified error of a block {float(ours.block_error.max()):.1e}",
        "normflows, x alone": f"error of a block {float(max(errors)):.1e}, "
        f"{evaluations[0] / len(peers):.1f} evaluations",
        "normflows, as it samples": "with the log-determinant's series",
    }
    first = statistics.median(seconds["iresflow, certified"])
    for case, times in seconds.items():
        ratio = statistics.median(times) / first
        print(f"{case:<26} {spread(times)}  x {ratio:5.2f}   {details[case]}", flush=True)


def trained(coeff: float, steps: int) -> Flow:
    """A model of the digits, as in ``configs/digits.yaml`` but for its coefficient."""
    torch.manual_seed(0)
    images = load_dataset("digits").train.values
    series = PowerSeries(60, tol=1e-3)
    settings = {"levels": 17, "coeff": coeff, "factor_out": False, "log_det": series}
    flow = ImageFlow((1, 8, 8), (4, 4), 32, **settings)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    flow.initialize(flow.dequantize(images[:512], generator))
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, step / 100)
        batch = images[torch.randint(len(images), (64,), generator=generator)]
        loss = -flow.log_prob(flow.dequantize(batch, generator), generator=generator).mean()
        optimizer.zero_grad()
        (loss / (64 * math.log(2))).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
    flow.eval().enforce()
    return flow


def models(options: argparse.Namespace) -> Iterator[tuple[str, Flow]]:
    """The models of the runs and those that are packaged, or some that are trained here."""
    for name in options.pretrained:
        yield name, iresflow.pretrained(name).eval()
    for run in options.runs:
        flow, _ = load_model(find_checkpoint(run), torch.device("cpu"))
        yield Path(run).name[-16:], flow
    for coeff in [] if options.runs or options.pretrained else options.coeff:
        print(f"training {options.steps} steps with coeff {coeff} ...", flush=True)
        yield f"digits {coeff}", trained(coeff, options.steps)


def main() -> None:
    """Prints the table and the races."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run directories or checkpoints")
    parser.add_argument("--pretrained", nargs="*", default=[], help="names of packaged models")
    parser.add_argument("--n", type=int, default=100, help="samples")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of the models trained here")
    parser.add_argument("--coeff", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--least", action="store_true", help="with the least evaluations")
    parser.add_argument("--no-race", action="store_true", help="without normflows")
    options = parser.parse_args()
    keep_freed_memory()
    compile_kernels()
    flows = dict(models(options))
    print(
        f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; "
        f"{options.n} samples, {options.repeats} repeats in turns; tolerance 1e-5 a block\n\n"
        f"{'model':<16} {'Lip(g)':>7}  {'solver':<24} {'evals':>7} {'ratio':>6}   "
        f"{'seconds':>7} {'':16} {'ratio':>6} {'samples/s':>9}   error <="
    )
    with torch.no_grad():
        latents = {
            name: flow.base.sample(options.n, generator=torch.Generator().manual_seed(0))
            for name, flow in flows.items()
        }
        for name, flow in flows.items():
            compare(name, flow, latents[name], options.repeats, options.least)
        if not options.no_race:
            print(f"\nrace against normflows {version('normflows')}, seconds")
            for name, flow in flows.items():
                if isinstance(flow, ImageFlow):
                    race(name, flow, latents[name], options.repeats)


if __name__ == "__main__":
    main()
