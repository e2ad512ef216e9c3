"""Do proven bounds hold? Counts attempts to violate them, on random models in float32.

A bound is of the map whose numbers are those that float32 has made of the parameters, in real
arithmetic: maps are evaluated in float64 with the weights as they act in float32.

- *Layers*: ratios |A v|_q / |v|_p at the vectors that maximise them (columns, rows, signs,
  singular vectors) and at random ones, for all p and q of 1, 2 and infinity; weights random, with
  taps that cancel each other, large, and tiny.
- *Maps*: |F(x) - F(y)| / |x - y| of blocks, scales, standardisation, logit and whole flows, and
  of their inverses (the same pairs, read backwards), at pairs of random points, far and near, and
  along the singular vectors of the Jacobian; log-determinants at the same points.
- *Inverses*: errors against the plain fixed-point iteration in float64, for blocks and whole
  flows, in float32 and float64, at tolerances from what the format allows up.

Exit code 1 if anything is violated.

    python benchmarks/certificates.py --pairs 100000 --inverses 10000
"""

import argparse
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from iresflow import ImageFlow, VectorFlow
from iresflow.bijections import (
    Accuracy,
    ActNorm,
    Bijection,
    Composition,
    Logit,
    MultiScale,
    ResidualBlock,
    Standardize,
)
from iresflow.bijections.stretch import Stretch
from iresflow.lipschitz import (
    CircularPadding,
    NormalizedConv2d,
    NormalizedDense,
    NormalizedLayer,
    ReflectPadding,
    ZeroPadding,
)
from iresflow.models import Flow

ROUNDING = 1e-13
"""Relative rounding of what is measured in float64."""

NORMS = (1.0, 2.0, math.inf)
PADDINGS = {"zero": ZeroPadding(), "circular": CircularPadding(), "reflect": ReflectPadding()}


@final
@dataclass
class Tally:
    """Attempts and violations of bounds, by what is bounded; and how near the nearest came."""

    attempts: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    nearest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, measured: Tensor, bound: Tensor | float) -> None:
        """Numbers ``(N,)`` and what none of them may exceed; NaN exceeds everything."""
        measured = measured.detach().double().flatten()
        bound = torch.as_tensor(bound, dtype=torch.float64).expand(measured.shape)
        self.attempts[name] += len(measured)
        self.violations[name] += int((~(measured <= bound)).sum())
        sound = bound > 0
        if bool(sound.any()):
            ratio = float((measured[sound] / bound[sound]).max())
            self.nearest[name] = max(self.nearest.get(name, 0.0), ratio)

    def __str__(self) -> str:
        head = f"{'what is bounded':<34}{'attempts':>10}{'violations':>12}{'largest / bound':>18}"
        rows = [
            f"{name:<34}{count:>10}{self.violations[name]:>12}{self.nearest.get(name, 0):>18.9f}"
            for name, count in sorted(self.attempts.items())
        ]
        total = f"{'all':<34}{self.attempts.total():>10}{self.violations.total():>12}"
        return "\n".join([head, *rows, total])


# Layers.


def random_layer(trial: int) -> tuple[str, NormalizedLayer, tuple[int, ...]]:
    """A layer in float32 with weights of one of the kinds that bounds have to bear."""
    if trial % 4 == 3:
        layer, shape, name = NormalizedDense(7, 5, coeff=0.9), (7,), "dense"
    else:
        kind = list(PADDINGS)[trial % 4]
        size = [(2, 2), (3, 4), (6, 5)][trial // 4 % 3]
        layer = NormalizedConv2d(2, 3, 3, size, coeff=0.9, padding=PADDINGS[kind])
        shape, name = (2, *size), kind
    weight = torch.randn(layer.weight.shape)
    match trial // 12 % 4:
        case 1 if weight.ndim == 4:  # taps on both sides of a border pixel cancel
            weight[..., 1] = 0
            weight[..., 2] = -weight[..., 0] * (1 + 1e-6 * torch.randn(weight.shape[:3]))
        case 2:
            weight *= 1e30
        case 3:
            weight *= 1e-38
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer.eval()
    if trial % 2:
        layer.enforce()
    return name, layer, shape


def attack_layer(tally: Tally, trial: int, count: int) -> None:
    name, layer, shape = random_layer(trial)
    size = math.prod(shape)
    acting = layer.operator(layer.normalized_weight().detach().double())
    matrix = acting(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).mT
    left, _, right = torch.linalg.svd(matrix)
    vectors = torch.cat(
        [
            torch.eye(size, dtype=torch.float64),  # columns
            matrix.sign(),  # of rows, in the norm of the largest entry
            matrix,  # rows
            right,
            (left.sign().mT @ matrix),
            torch.randn(count, size, dtype=torch.float64),
        ]
    )
    vectors = vectors[vectors.abs().amax(1) > 0]
    vectors /= vectors.abs().amax(1, keepdim=True)
    images = vectors @ matrix.mT
    for p, q in itertools.product(NORMS, NORMS):
        ratio = images.norm(dim=1, p=q) / vectors.norm(dim=1, p=p)
        upper = layer.bounds()[p, q].upper * (1 + ROUNDING)
        tally.add(f"layers, {name} padding" if name in PADDINGS else "layers, dense", ratio, upper)


# Maps.


def random_flow(trial: int) -> Flow:
    """A small flow in float32, initialised, moved away from its start, and certified."""
    context = 2 * (trial % 2)
    flow: Flow
    match trial % 4:
        case 0:
            flow = VectorFlow(4, 3, 16, context_dim=context, learned_prior=True)
        case 1:
            flow = VectorFlow(3, 2, 8, context_dim=context)
        case 2:
            flow = ImageFlow((2, 4, 4), (2, 1), 6, context_dim=context)
        case _:
            flow = ImageFlow((1, 4, 4), (1, 2), 4, context_dim=context, padding="reflect")
    unit = 10.0 ** (trial % 13 - 6) if isinstance(flow, VectorFlow) else 1.0
    flow.initialize(unit * torch.rand(64, *flow.shape), rows(flow, 64))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    flow.eval().enforce()
    return flow.requires_grad_(False)


def rows(flow: Flow, count: int) -> Tensor | None:
    return torch.randn(count, flow.context_dim) if flow.context_dim else None


def parts_of(flow: Flow, x: Tensor, context: Tensor | None) -> list[tuple[str, Bijection, Tensor]]:
    """The innermost maps of a flow, by the names of their classes, with what they get at x."""
    found: list[tuple[str, Bijection, Tensor]] = []

    def watched(part: Bijection) -> Callable[[Tensor, Tensor | None], Tensor]:
        plain = part.transform

        def transform(y: Tensor, c: Tensor | None = None) -> Tensor:
            found.append((f"maps, {type(part).__name__}", part, y))
            return plain(y, c)

        return transform

    kinds = (ActNorm, Standardize, Logit, ResidualBlock)
    parts = [part for part in flow.modules() if isinstance(part, kinds)]
    for part in parts:
        part.transform = watched(part)  # type: ignore[method-assign]
    flow.bijection.transform(flow.data_map.transform(x), context)
    for part in parts:
        del part.transform
    return found


def attack_maps(tally: Tally, trial: int, count: int) -> None:
    flow = random_flow(trial)
    x = torch.rand(count, *flow.shape, dtype=torch.float64)
    if isinstance(flow.data_map, Standardize):
        x = flow.data_map.inverse(2 * torch.randn(count, *flow.shape, dtype=torch.float64))
    context = rows(flow, 1)
    wide = None if context is None else context.expand(count, -1)
    certificate = flow.certify()
    inner = flow.data_map.transform(x)
    cases = [("whole flows", flow.bijection, inner, certificate.bijection)]
    cases += [(n, part, y, part.stretch(y[0].numel())) for n, part, y in parts_of(flow, x, wide)]
    for name, bijection, y, stretch in cases:
        attack_map(tally, name, bijection, y, context, stretch)


def attack_map(
    tally: Tally, name: str, bijection: Bijection, x: Tensor, context: Tensor | None, s: Stretch
) -> None:
    """Pairs of a map's points, and the singular values and log-determinant of its Jacobian."""
    context = None if context is None else context.expand(len(x), -1)
    other = x.roll(1, 0)  # another point of the same kind
    size = (x - other).flatten(1).norm(dim=1).median()
    pairs = [other]
    for scale in (1e-1, 1e-3):
        step = scale * size * torch.randn_like(x) / math.sqrt(x[0].numel())
        pairs.append(x + step)
    if isinstance(bijection, Logit):
        pairs = [p.clamp(0, 1) for p in pairs]
    image = bijection.transform(x, context)
    for y in pairs:
        moved = (bijection.transform(y, context) - image).flatten(1).norm(dim=1)
        distance = (y - x).flatten(1).norm(dim=1)
        # The rounding of both images, in units of what they may amplify.
        noise = 1e-13 * (image.flatten(1).norm(dim=1) + x.flatten(1).norm(dim=1) * s.forward)
        tally.add(name, moved, s.forward * distance * (1 + ROUNDING) + noise)
        tally.add(f"{name}, backwards", distance, s.inverse * (moved + noise) * (1 + ROUNDING))
    some = x[:4]
    few = None if context is None else context[:4]
    jacobian = torch.stack([_jacobian(bijection, p, few) for p in some])
    values = torch.linalg.svdvals(jacobian).log()
    slack = 1e-10
    tally.add(name, values[:, 0].exp(), s.forward * (1 + slack))
    tally.add(f"{name}, backwards", (-values[:, -1]).exp(), s.inverse * (1 + slack))
    log_det, scale = values.sum(1), slack * (1 + values.abs().sum(1))
    outside = torch.maximum(log_det - s.log_det_upper, s.log_det_lower - log_det) - scale
    tally.add(f"{name}, log-determinant", outside.clamp_min(0), 0.0)


def _jacobian(bijection: Bijection, x: Tensor, context: Tensor | None) -> Tensor:
    one = None if context is None else context[:1]

    def function(y: Tensor) -> Tensor:
        return bijection.transform(y.reshape(1, *x.shape), one).flatten()

    return torch.autograd.functional.jacobian(function, x.flatten())


# Inverses.


@torch.no_grad()
def exact_inverse(bijection: Bijection, z: Tensor, context: Tensor | None) -> Tensor:
    """In float64 by the plain iteration, with nothing of the solvers."""
    if isinstance(bijection, Composition):
        for part in reversed(bijection.maps):
            z = exact_inverse(part, z, context)
        return z
    if isinstance(bijection, MultiScale):
        *pieces, x = bijection.split(z)
        for scale, piece in zip(reversed(bijection.scales), [None, *pieces[::-1]], strict=True):
            x = x if piece is None else torch.cat([piece, x], dim=1)
            x = exact_inverse(scale, x, context)
        return x
    if not isinstance(bijection, ResidualBlock):
        return bijection.invert(z, context).value
    x = z
    for _ in range(3000):
        x, last = z - bijection.branch(x, context), x
        if float((x - last).abs().max()) < 1e-15 * float(x.abs().max()):
            break
    return x


def attack_inverses(tally: Tally, trial: int, count: int) -> None:
    flow = random_flow(trial)
    context = rows(flow, count)
    z = 2 * torch.randn(count, flow.base_dim, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        tol = 10.0 ** -(2 + trial % 4 + 4 * (dtype == torch.float64))
        latent = z.to(dtype)
        inner = exact_inverse(flow.bijection, latent.double(), context)
        exact = flow.data_map.invert(inner).value
        back = flow.invert(latent, context)
        error = (back.value.double() - exact).flatten(1).norm(dim=1)
        tally.add(f"inverse of flows, {dtype}", error, back.worst_case)
        for _, block in flow.blocks():
            shape = (count, *_input_shape(flow, block))
            y = (4 * torch.randn(shape, dtype=torch.float64)).to(dtype)
            result = block.invert(y, context, Accuracy(tol))
            true = exact_inverse(block, y.double(), context)
            error = (result.value.double() - true).flatten(1).norm(dim=1)
            tally.add(f"inverse of blocks, {dtype}", error, result.error + 1e-14)
            allowed = torch.maximum(torch.full_like(result.floor, tol), 2 * result.floor)
            tally.add(f"tolerance of blocks, {dtype}", result.error, allowed)


def _input_shape(flow: Flow, block: ResidualBlock) -> tuple[int, ...]:
    shapes: list[tuple[int, ...]] = []
    hook = block.branch.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[1:]))
    flow.transform(torch.rand(1, *flow.shape), rows(flow, 1))
    hook.remove()
    return shapes[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000, help="attempts on bounds")
    parser.add_argument("--inverses", type=int, default=10_000, help="inverses")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    start, tally, trial = time.perf_counter(), Tally(), 0
    while tally.attempts.total() < options.pairs:
        attack_layer(tally, trial, 20)
        if trial % 8 == 0:
            attack_maps(tally, trial // 8, 100)
        trial += 1
    proven, trial = tally.attempts.total(), 0
    inverses = Tally()
    while sum(n for name, n in inverses.attempts.items() if "inverse" in name) < options.inverses:
        attack_inverses(inverses, trial, 100)
        trial += 1
    seconds = time.perf_counter() - start
    print(f"{tally}\n\n{inverses}\n\n{proven} attempts on bounds, {seconds:.0f} s")
    return 1 if tally.violations.total() + inverses.violations.total() else 0


if __name__ == "__main__":
    sys.exit(main())
