"""How deep a call goes: the package's own frames from a public call to each product of a branch.

    python benchmarks/frames.py

For ``log_prob``, a training step and ``sample`` of a small image flow it prints the largest number
of the package's frames on the stack at a convolution or a product of matrices, in how many files
they lie, and that stack. Frames of PyTorch, of the interpreter and of this script do not count.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import iresflow
from iresflow.training.config import TrainingConfig
from iresflow.training.loop.batches import Batch, Share
from iresflow.training.loop.guard import Immediate
from iresflow.training.loop.optimizers import new_optimizer
from iresflow.training.loop.processes import Alone
from iresflow.training.loop.step import StepFunction
from iresflow.training.objectives.likelihood import MaximumLikelihood

PACKAGE = str(Path(iresflow.__file__).parent)
PRODUCTS = ("convolution", "mm", "addmm", "bmm")


def own_frames() -> list[tuple[str, str]]:
    """The package's frames on the stack, outermost first: file and function."""
    frames: list[tuple[str, str]] = []
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            frames.append((file.removeprefix(PACKAGE + "/"), frame.f_code.co_qualname))
        frame = frame.f_back  # type: ignore[assignment]
    return frames[::-1]


class Depth(TorchDispatchMode):
    """Keeps the deepest stack at a product."""

    def __init__(self) -> None:
        super().__init__()
        self.deepest: list[tuple[str, str]] = []
        self.files: set[str] = set()

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if function.overloadpacket.__name__ in PRODUCTS:
            frames = own_frames()
            self.files |= {file for file, _ in frames}
            if len(frames) > len(self.deepest):
                self.deepest = frames
        return function(*args, **(kwargs or {}))


def calls() -> dict[str, Callable[[], object]]:
    """The three calls of a flow on 8 x 8 images, whose ActNorm has seen data."""
    torch.manual_seed(0)
    flow = iresflow.ImageFlow((1, 8, 8), blocks=(2, 2), hidden=8, levels=17)
    images = torch.randint(0, 17, (32, 1, 8, 8))
    flow.initialize(flow.dequantize(images))
    evaluated = iresflow.ImageFlow((1, 8, 8), blocks=(2, 2), hidden=8, levels=17)
    evaluated.load_state_dict(flow.state_dict())
    evaluated.eval().enforce()
    x = flow.dequantize(images)
    evaluated.log_prob(x)  # certifies

    config = TrainingConfig(batch_size=32)
    optimizer, objective = new_optimizer(list(flow.parameters()), config), MaximumLikelihood()
    step = StepFunction(
        flow.train(), objective, optimizer, Immediate(), config, [Share(32, 0, 32)], Alone(), 0
    )
    batch = Batch(images, None)
    return {
        "log_prob": lambda: evaluated.log_prob(x),
        "training step": lambda: step.take(0, batch, 1e-3, lambda: (0.0, 0.0)),
        "sample": lambda: evaluated.sample(4),
    }


def main() -> None:
    """Prints the table, and the deepest stacks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, help="exit code 1 where a call goes deeper")
    options = parser.parse_args()
    found = {}
    for name, call in calls().items():
        with Depth() as depth:
            call()
        found[name] = depth
    for name, depth in found.items():
        print(f"{name:<14} {len(depth.deepest):3d} frames, {len(depth.files):3d} files")
    for name, depth in found.items():
        print(f"\n{name}")
        for i, (file, function) in enumerate(depth.deepest, 1):
            print(f"  {i:2d} {file}: {function}")
    if options.most and any(len(depth.deepest) > options.most for depth in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
