"""The stages of a network: the calls of its modules and functions that change something."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from iresflow.relu.networks.recording import StopRun, recording

__all__ = ["Stage", "find_stages", "run_module"]

Visit = Callable[[int, str, str, Tensor], None]
"""Is told the number of a part that has run, its name, its kind, and what it has given."""

ALONE = 1e-9
"""Largest change of what a sample gives when another batch surrounds it, relative to the largest
output: rounding is far below."""


@final
@dataclass(frozen=True)
class Stage:
    """A place in a network: after a call of one of its modules or functions.

    Attributes:
        number: Of the call, from 0, in the order in which they end.
        name: Of the module, such as ``layer1.0.conv1``, where ``""`` is the network itself; of a
            function after that of the module that calls it, such as ``layer1.0.relu``.
        call: Which of its calls, from 0: a module may be used more than once.
        kind: Class of the module, or ``function``.
        shape: Of what one sample is there.
    """

    number: int
    name: str
    call: int
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Entries of what one sample is there."""
        return torch.Size(self.shape).numel()

    def __str__(self) -> str:
        again = f", call {self.call + 1}" if self.call else ""
        return f"{self.name or 'the network'}{again} ({self.kind})"


def find_stages(module: nn.Module, point: Tensor) -> tuple[Stage, ...]:
    """All calls that change something, in their order.

    Arguments:
        module: The network.
        point: Inputs ``(B, *in_shape)`` in float64.

    Raises:
        ValueError: an output that is no tensor of B samples, or not finite, or that depends on the
            other samples or on chance.
        RuntimeError: whatever the module says of such inputs.
    """
    stages: list[Stage] = []
    calls: dict[str, int] = {}
    inputs = point.clone()
    before = (inputs, inputs._version)

    def visit(number: int, name: str, kind: str, output: Tensor) -> None:
        nonlocal before
        call = calls[name] = calls.get(name, -1) + 1
        # What a module passes on, or shows in another shape, is the memory that it was.
        same = output.data_ptr() == before[0].data_ptr() and output.numel() == before[0].numel()
        if output.shape[:1] == point.shape[:1] and not (same and output._version == before[1]):
            stages.append(Stage(number, name, call, kind, tuple(output.shape[1:])))
        before = (output, output._version)

    generator = torch.Generator(point.device).manual_seed(0)
    others = torch.randn(point.shape, generator=generator, device=point.device, dtype=point.dtype)
    with torch.no_grad():
        value = run_module(module, inputs, None, visit).clone()
        again = run_module(module, torch.cat([point, others]), None)
    if value.shape[:1] != point.shape[:1] or again.shape != (2 * len(value), *value.shape[1:]):
        raise ValueError(f"it gives {tuple(value.shape)}; allowed is (B, ...) for points (B, ...)")
    if not bool(torch.isfinite(value).all()):
        raise ValueError("it gives values that are not finite")
    if not bool(((again[: len(value)] - value).abs() <= ALONE * (1 + value.abs().amax())).all()):
        raise ValueError("what it gives depends on the other samples, or on chance")
    return tuple(stages)


def run_module(
    module: nn.Module,
    x: Tensor,
    last: Stage | None,
    visit: Visit | None = None,
) -> Tensor:
    """The output of a module, or of a stage, in float64; its parameters keep their graph.

    A module that works in place overwrites x.
    """
    found: object = None
    count = 0

    def record(name: str, kind: str, output: object) -> None:
        nonlocal count, found
        number, count = count, count + 1
        if isinstance(output, Tensor) and visit is not None:
            visit(number, name, kind, output)
        if last is not None and number == last.number:
            found = output
            raise StopRun

    with _attributes_kept(module), recording(module, record):
        found = functional_call(module, _in_float64(module), (x,), tie_weights=False)
    if not isinstance(found, Tensor):
        raise ValueError(f"it gives {type(found).__name__}; allowed is one tensor")
    if visit is not None and (last is None or last.number == count):
        visit(count, "", type(module).__name__, found)  # a call of its own may do more
    return found


def _in_float64(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, each of its parts once: PyTorch doesn't put back what it ties."""
    wide: dict[Tensor, Tensor] = {}
    state = {}
    for prefix, part in module.named_modules():
        for name, value in (*part._parameters.items(), *part._buffers.items()):
            if value is not None:
                if value not in wide:
                    wide[value] = value.double() if value.is_floating_point() else value
                state[f"{prefix}.{name}" if prefix else name] = wide[value]
    return state


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Puts back the tensors that old-style norms store at each call beside their parameters."""
    kept = [
        (part, {name: value for name, value in vars(part).items() if isinstance(value, Tensor)})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, tensors in kept:
            vars(part).update(tensors)
