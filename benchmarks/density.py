"""Densities by the second: iresflow against coupling, spline and autoregressive flows.

What a user asks who needs a density: how long does a training step take, how many log-densities
and how many samples come out in a second, and how good a likelihood does the same training time
buy? The peers are flows of `zuko` and `normflows` (``pip install zuko normflows``), built as their
own examples build them. "Matched" have about as many parameters as ours (masked ones are counted),
"its size" is the package's default. All models have the same pixel map, data, batches and threads.
Seconds are those of the processor (``time.process_time``, over all threads: OMP_NUM_THREADS=1
makes them fair). What is timed takes turns, so that all meet the same machine; trainings follow
one another.

* training: loss, gradient, Adam, on one batch of the configuration's size;
* log_prob: in eval mode, without gradients. Ours estimates log-determinants: with the estimator of
  eval mode, and with others. Standard errors and truncation bounds stand below the table;
* sample: ours inverts each block to a certified error and measures the residual of the whole;
* likelihood: each model trains for the same seconds with each learning rate, by the protocol of
  our configurations (Adam with betas of 0.9 and 0.99, gradients clipped to norm 1, averaged
  weights), the rate rising over the first twentieth of the time. The validation part chooses rate
  and time, the test part is scored once, all with the same stream of dequantisation noise.

"x ours" is the speed relative to iresflow as it comes: above 1 is faster. The speeds are those of
the trained models where models were trained, else of initialised ones. Those flatter ours: the
nearer a block is to its Lipschitz bound, the more products and steps it takes.

    python benchmarks/density.py                            all, in about 7 minutes on 2 cores
    python benchmarks/density.py --only digits --seconds 60
    python benchmarks/density.py --only mnist --run runs/0000-mnist-small --root DIR
    python benchmarks/density.py --no-training              speeds alone
"""

import argparse
import copy
import logging
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from peers import CASES, Case, Density, Ours, as_floats, data_of, settings_of
from torch import Tensor, nn

import iresflow
from iresflow import Exact, Flow, ImageFlow
from iresflow.commands.memory import keep_freed_memory
from iresflow.data import Dataset
from iresflow.lipschitz.passes.kernels import compile_kernels, kernels_compile
from iresflow.training.build import build_model
from iresflow.training.checkpoint import find_checkpoint

OURS = "iresflow"
MARKS = 4  # validations in a training
RISE = 0.05  # share of the time in which the learning rate rises
WARM_UP = 2  # calls that are not timed
PROBES = 8  # probes for the standard error of one


def losses(data: Dataset, log_prob: Tensor) -> Tensor:
    """Bits/dim of images, nats of vectors, ``(B,)``."""
    if data.levels is None:
        return -log_prob
    return math.log2(data.levels) - log_prob / (data.train.values[0].numel() * math.log(2))


@torch.no_grad()
def score(density: Density, data: Dataset, values: Tensor, seed: int) -> Tensor:
    """The loss of each sample in eval mode."""
    stream = torch.Generator().manual_seed(seed)
    parts = values.split(500)
    return losses(data, torch.cat([density.log_likelihood(part, data, stream) for part in parts]))


@dataclass(frozen=True)
class Trained:
    """A model after so many seconds of training, and its validation loss."""

    density: Density
    rate: float
    seconds: float
    steps: int
    validation: float


def averaged(average: Density, density: Density) -> Density:
    """The averaged model with the state that is no parameter, ready for use."""
    torch._foreach_copy_(list(average.buffers()), list(density.buffers()))
    average.eval().settle()
    return average


def train(
    density: Density, data: Dataset, held: Tensor, batch: int, rate: float, seconds: float
) -> list[Trained]:
    """Trains for so many seconds; what came out at the marks, until a loss is not finite."""
    generator, values = torch.Generator().manual_seed(1), data.train.values
    optimizer = torch.optim.Adam(density.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    average = copy.deepcopy(density)
    results: list[Trained] = []
    spent, steps = 0.0, 0
    for mark in range(1, MARKS + 1):
        density.train()
        while spent < seconds * mark / MARKS:
            began = time.process_time()
            optimizer.param_groups[0]["lr"] = rate * min(1, spent / (RISE * seconds))
            rows = torch.randint(len(values), (batch,), generator=generator)
            loss = losses(data, density.log_likelihood(values[rows], data, generator)).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(density.parameters(), 1.0)
            if not bool(loss.isfinite() & norm.isfinite()):
                return results
            optimizer.step()
            decay = min(0.999, (1 + steps) / (10 + steps))
            with torch.no_grad():
                old, new = list(average.parameters()), list(density.parameters())
                torch._foreach_lerp_(old, new, 1 - decay if steps else 1.0)
            steps += 1
            spent += time.process_time() - began
        loss = float(score(averaged(average, density), data, held, 3).mean())
        results.append(Trained(copy.deepcopy(average), rate, spent, steps, loss))
    return results


def compare_likelihoods(
    name: str,
    data: Dataset,
    new: dict[str, Callable[[], Density]],
    batch: int,
    options: argparse.Namespace,
) -> dict[str, Density]:
    """Prints the table of test losses; returns the trained models."""
    unit = "nats" if data.levels is None else "bits/dim"
    held, test = (
        data.validation.values[: options.scored or 2000],
        data.test.values[: options.scored],
    )
    print(
        f"\n{name}: {unit} after {options.seconds:g} s of training with each rate of "
        f"{', '.join(f'{r:g}' for r in options.rates)}; batch {batch}, "
        f"{len(test)} test samples\n"
        f"{'model':<34} {'parameters':>10} {'rate':>7} {'seconds':>8} {'steps':>6} "
        f"{'validation':>11} {'test':>8} +- sample {'- ours':>9} +- paired"
    )
    best: dict[str, Density] = {}
    scores: dict[str, Tensor] = {}
    for label, make in new.items():
        runs = [
            result
            for rate in options.rates
            for result in train(make(), data, held, batch, rate, options.seconds)
            if math.isfinite(result.validation)
        ]
        if not runs:
            print(f"{label:<34} no rate gave a finite loss", flush=True)
            continue
        chosen = min(runs, key=lambda run: run.validation)
        best[label] = chosen.density
        scores[label] = score(chosen.density, data, test, 2)
        line = (
            f"{label:<34} {chosen.density.parameters_count:10,} {chosen.rate:7g} "
            f"{chosen.seconds:8.1f} {chosen.steps:6d} {chosen.validation:11.3f} "
            f"{mean_and_error(scores[label])}"
        )
        if len(scores) > 1 and OURS in scores:
            line += f"  {mean_and_error(scores[label] - scores[OURS])}"
        print(line, flush=True)
    return best


def mean_and_error(values: Tensor) -> str:
    """The mean and its standard error over the samples."""
    return f"{float(values.mean()):8.3f} +- {float(values.std()) / len(values) ** 0.5:.3f}"


def in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of the processor that calls take, one after another and all over again."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-WARM_UP, repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if repeat >= 0:
                seconds[name].append(time.process_time() - began)
    return seconds


def training_step(density: Density, x: Tensor) -> Callable[[], None]:
    """Loss, gradient and optimiser, on a copy of the model."""
    density = copy.deepcopy(density).train()
    optimizer = torch.optim.Adam(density.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = -density.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def short(value: float) -> str:
    """Three digits, with k for thousands."""
    if value >= 999.5:
        return f"{short(value / 1000)}k"
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def cells(seconds: dict[str, list[float]], convert: Callable[[float], float]) -> dict[str, str]:
    """Median, range and relative speed of each model; the first is ours."""
    first = statistics.median(next(iter(seconds.values())))
    texts = {}
    for label, values in seconds.items():
        middle = statistics.median(values)
        ends = sorted(convert(v) for v in (min(values), max(values)))
        spread = f"({short(ends[0])} .. {short(ends[1])})"
        texts[label] = f"{short(convert(middle)):>6} {spread:<16} {short(first / middle):>6}"
    return texts


def compare_speeds(
    name: str, case: Case, models: dict[str, Density], x: Tensor, batch: int, repeats: int
) -> None:
    """Prints the table of speeds; the first model is ours, and x is what is scored."""
    flow, n = models[OURS].flow, case.at_once
    steps = {label: training_step(m, x[:batch]) for label, m in models.items()}
    with torch.no_grad():
        scoring: dict[str, Callable[[], object]] = {
            label: lambda m=m: m.log_prob(x) for label, m in models.items()
        }
        for label, estimator in case.estimators.items():
            scoring[label] = lambda e=estimator: flow.log_prob(x, log_det=e)
        drawing = {label: lambda m=m: m.sample(n) for label, m in models.items()}
        scored, drawn = in_turns(scoring, repeats), in_turns(drawing, repeats)
    columns = (
        cells(in_turns(steps, repeats), lambda s: 1000 * s),
        cells(scored, lambda s: len(x) / s),
        cells(drawn, lambda s: n / s),
    )
    heads = ("training step, ms", "log_prob, samples/s", "sample, samples/s")
    print(
        f"\n{name}: training batch {batch}, {len(x)} scored and {n} drawn at a time, "
        f"{repeats} repeats\n{'model':<34} {'parameters':>10}"
        + "".join(f"  {head:<23} {'x ours':>6}" for head in heads)
    )
    for label in [OURS, *case.estimators, *list(models)[1:]]:
        count = f"{models[label].parameters_count:,}" if label in models else ""
        row = "".join(f"  {column.get(label, ''):<30}" for column in columns)
        print(f"{label:<34} {count:>10}{row}".rstrip(), flush=True)
    describe(flow, case, x, n)


def describe(flow: Flow, case: Case, x: Tensor, n: int) -> None:
    """Prints how exact our numbers are, and how near the blocks are to their bounds."""
    image = isinstance(flow, ImageFlow)
    unit, nats = ("bits/dim", flow.base_dim * math.log(2)) if image else ("nats", 1.0)
    small = flow.base_dim <= flow.EVALUATION.values or isinstance(flow.log_det, Exact)
    own = Exact() if small else flow.EVALUATION.otherwise
    print(f"\nour log_prob, {unit} of a sample, root mean square and the largest:")
    for label, estimator in {"as it comes": own, **case.estimators}.items():
        bound = float(flow.likelihood(x, log_det=estimator).truncation_bound.max())
        variance = torch.zeros(())
        if not isinstance(estimator, Exact):
            many = flow.likelihood(x, log_det=replace(estimator, probes=PROBES))
            variance = many.variance.mean() * PROBES / estimator.probes
        print(
            f"  {label.strip():<34} standard error {float(variance) ** 0.5 / nats:.1e}, "
            f"truncation <= {bound / nats:.1e}   {estimator}"
        )
    with torch.no_grad():
        result = flow.invert(flow.base.sample(n, generator=torch.Generator().manual_seed(0)))
    print(
        f"our samples: certified error of a block {float(result.block_error.max()):.1e}, measured "
        f"residual {float(result.residual.max()):.1e}; largest certified Lip(g) "
        f"{flow.certify().largest:.3f}"
    )


def compare(name: str, case: Case, options: argparse.Namespace) -> None:
    """The tables of one data set."""
    if options.at_once:
        case = replace(case, at_once=options.at_once)
    config = settings_of(case.config)
    data = data_of(name, options.root if name == "mnist" else None)
    batch = config.training.batch_size
    generator = torch.Generator().manual_seed(0)
    initial = options.initial or (512 if data.levels else 48_000)
    x_first = as_floats(data, data.train.values[:initial], generator)

    def initialised(make: Callable[[], Density]) -> Density:
        torch.manual_seed(0)
        density = make()
        with torch.no_grad():
            density.train().initialize(x_first)
        return density

    makers = {OURS: lambda: Ours(build_model(config, data))}
    if not options.no_peers:
        makers |= case.peers
    new = {label: lambda m=make: initialised(m) for label, make in makers.items()}
    models: dict[str, Density] = {}
    if case.trains and not options.no_training:
        models = compare_likelihoods(name, data, new, batch, options)
    for label, make in new.items():
        if label not in models:
            models[label] = make().eval()
            models[label].settle()
    if name == "mnist" and options.run is not None:
        models[OURS] = Ours(iresflow.load(find_checkpoint(options.run)))
    if options.repeats:
        x = as_floats(data, data.test.values[: case.at_once], generator)
        ordered = {label: models[label] for label in new}
        compare_speeds(name, case, ordered, x, batch, options.repeats)


def main() -> None:
    """Prints the tables of each data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="of the speeds; 0 for none")
    parser.add_argument(
        "--at-once", type=int, help="samples that are scored, and drawn, at a time"
    )
    parser.add_argument("--initial", type=int, help="samples that new models are initialised with")
    parser.add_argument(
        "--scored", type=int, help="samples to validate and to test on; else 2000, and all"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each training")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2, 1e-1])
    parser.add_argument("--no-training", action="store_true", help="speeds alone")
    parser.add_argument("--no-peers", action="store_true", help="without zuko and normflows")
    parser.add_argument("--no-compile", action="store_true", help="pointwise kernels unfused")
    parser.add_argument("--run", help="a trained run of configs/mnist-small.yaml, for its speeds")
    parser.add_argument("--root", help="directory of MNIST; without it, random pixels")
    options = parser.parse_args()
    logging.basicConfig()
    keep_freed_memory()
    compile_kernels(not options.no_compile)
    packages = ["torch"] if options.no_peers else ["torch", "normflows", "zuko"]
    print(
        f"{', '.join(f'{p} {version(p)}' for p in packages)}, {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}"
    )
    for name in options.only:
        compare(name, CASES[name], options)
    print(f"\npointwise kernels were {'compiled' if kernels_compile() else 'not compiled'}")


if __name__ == "__main__":
    main()
