"""Is an inverse ever worse than claimed? A trained model's claims against float64.

Inverts latents of test samples and of the base density in the model's own type of float, and
compares each block's certified error, and the flow's worst case, with a reference: the plain
fixed-point iteration in float64 with the same weights, run until its own error is below 1e-12. The
reference shares no code with the solvers. Any violation ends the script with exit code 1.

    python benchmarks/inverse_accuracy.py runs/0000-mnist --n 10000 --root data
"""

import argparse
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iresflow import ImageFlow
from iresflow.bijections import Accuracy, Bijection, Composition, MultiScale, ResidualBlock
from iresflow.commands.memory import keep_freed_memory
from iresflow.models import Flow
from iresflow.training.checkpoint import find_checkpoint, load_model
from iresflow.training.objectives.contexts import context_of
from iresflow.training.runs.known_data import load_data

REFERENCE = 1e-12
"""Largest certified error of a block's reference, or 1e-9 of what is claimed of the block."""


@dataclass
class Tally:
    """What was claimed and what was true, sample by sample."""

    claimed: list[Tensor] = field(default_factory=list)
    true: list[Tensor] = field(default_factory=list)

    def add(self, claimed: Tensor, value: Tensor, exact: Tensor) -> None:
        """Claims ``(B,)`` of values ``(B, *event)`` and what these should have been."""
        self.claimed.append(claimed.double().cpu())
        self.true.append((value.double() - exact).flatten(1).norm(dim=1).cpu())

    def row(self, name: str) -> tuple[str, int]:
        """A printed row, and the number of samples that are worse than claimed."""
        claimed, true = torch.cat(self.claimed), torch.cat(self.true)
        worse = int((~(true <= claimed)).sum())
        ratio = float((true / claimed).max())
        text = f"{name:<20} {claimed.max():10.2e} {true.max():10.2e} {ratio:12.2e} {worse:10d}"
        return text, worse


def reference_block(
    block: ResidualBlock, y: Tensor, start: Tensor, context: Tensor | None
) -> Tensor:
    """The block's inverse by the plain iteration in float64; any start leads to it."""
    upper = block.branch.bound().upper
    x = start
    for _ in range(2000):
        x, last = y - block.branch(x, context), x
        moved = (x - last).flatten(1).norm(dim=1)
        size = x.flatten(1).norm(dim=1)
        # |x - x*| <= L / (1 - L) |x - last|; below the rounding of x nothing moves any more.
        if bool((moved * upper / (1 - upper) <= REFERENCE).all() | (moved <= 4e-16 * size).all()):
            break
    return x


def reference(
    bijection: Bijection,
    z: Tensor,
    context: Tensor | None,
    starts: dict[ResidualBlock, Tensor],
) -> Tensor:
    """A bijection's inverse in float64."""
    if isinstance(bijection, Composition):
        for part in reversed(bijection.maps):
            z = reference(part, z, context, starts)
        return z
    if isinstance(bijection, MultiScale):
        *pieces, x = bijection.split(z)
        for scale, piece in zip(reversed(bijection.scales), [None, *pieces[::-1]], strict=True):
            x = x if piece is None else torch.cat([piece, x], dim=1)
            x = reference(scale, x, context, starts)
        return x
    if isinstance(bijection, ResidualBlock):
        return reference_block(bijection, z, starts[bijection], context)
    return bijection.invert(z, context).value


def check(flow: Flow, z: Tensor, context: Tensor | None, accuracy: Accuracy, tallies: dict) -> int:
    """Adds a batch to the tallies; returns the branch evaluations that its inverse took."""
    seen: dict[ResidualBlock, tuple[Tensor, Tensor]] = {}
    plain = {block: block.invert for _, block in flow.blocks()}
    names = {block: name for name, block in flow.blocks()}

    def recorded(block: ResidualBlock):  # noqa: ANN202
        def invert(y, context=None, accuracy=None):  # noqa: ANN001, ANN202
            result = plain[block](y, context, accuracy)
            if len(y) == len(z):  # not a refinement of some samples
                seen[block] = (y, result.value)
                claims[block] = result.error
            return result

        return invert

    claims: dict[ResidualBlock, Tensor] = {}
    for block in plain:
        block.invert = recorded(block)
    started = time.perf_counter()
    back = flow.invert(z, context, accuracy)
    tallies["seconds"] += time.perf_counter() - started
    for block in plain:
        del block.invert
    for block, (y, value) in seen.items():
        exact = reference_block(block, y.double(), value.double(), context)
        tallies["blocks"].setdefault(names[block], Tally()).add(claims[block], value, exact)
    starts = {block: value.double() for block, (_, value) in seen.items()}
    point = reference(flow.bijection, z.double(), context, starts)
    tallies["flow"].add(back.worst_case, back.value, flow.data_map.invert(point).value)
    tallies["residual"].append(back.residual)
    tallies["sweeps"] = max(tallies["sweeps"], int(back.sweeps.max()))
    return int(back.steps.sum())


def latents(flow: Flow, options: argparse.Namespace):  # noqa: ANN201
    """Batches of latents with their contexts, in turn from test samples and from the base."""
    like = next(flow.parameters())
    generator = torch.Generator().manual_seed(0)
    test = load_data(options.run, root=options.root).test
    done = used = 0
    while done < options.n:
        count = min(options.batch, options.n - done)
        if done // options.batch % 2 == 0 and used + count <= len(test):
            rows = slice(used, used + count)
            labels = None if test.labels is None else test.labels[rows]
            context = context_of(labels, flow.context_dim, like)
            x = test.values[rows]
            x = flow.dequantize(x, generator) if isinstance(flow, ImageFlow) else x.to(like.dtype)
            yield flow.transform(x, context), context
            used += count
        else:
            context = context_of(torch.arange(count), flow.context_dim, like)
            yield flow.base.sample(count, context, generator=generator), context
        done += count


@torch.no_grad()
def main() -> int:
    """Prints claimed and true errors; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory or checkpoint")
    parser.add_argument("--n", type=int, default=10_000, help="latents, half from test samples")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no batch starts")
    parser.add_argument("--root", help="directory of the data, where it has moved")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--tol", type=float, default=1e-5, help="of each block")
    options = parser.parse_args()
    keep_freed_memory()
    flow, _ = load_model(find_checkpoint(options.run), torch.device("cpu"))
    dtype = next(flow.parameters()).dtype
    tallies = {"blocks": {}, "flow": Tally(), "residual": [], "sweeps": 0, "seconds": 0.0}
    steps = done = 0
    started = time.perf_counter()
    for z, context in latents(flow, options):
        steps += check(flow, z, context, Accuracy(options.tol), tallies)
        done += len(z)
        if done % (10 * options.batch) == 0:
            print(f"{done} samples", file=sys.stderr, flush=True)
        if time.perf_counter() - started > 60 * options.minutes:
            break
    count = len(tallies["blocks"])
    print(
        f"{done} latents, in turn of test samples and base; {dtype}, tol {options.tol:g} a block"
    )
    print(f"\n{'':<20} {'claimed <=':>10} {'true <=':>10} {'true/claimed':>12} {'violations':>10}")
    violations = 0
    for name, tally in [*tallies["blocks"].items(), ("flow, worst case", tallies["flow"])]:
        text, worse = tally.row(name)
        violations += worse
        print(text)
    residual = torch.cat(tallies["residual"])
    print(
        f"\nmeasured residual    {residual.max():.2e} at most, mean {residual.mean():.2e}; "
        f"sweeps {tallies['sweeps']} at most\n"
        f"evaluations          {steps / done:.1f} a sample, {steps / done / max(count, 1):.1f} a "
        f"block\n"
        f"inversion            {done / tallies['seconds']:.1f} samples/s\n"
        f"violations           {violations} of {done * (count + 1)} claims"
    )
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
