"""What the parts of a network give while it runs: its submodules, and functions in its forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

__all__ = ["FUNCTION", "StopRun", "recording"]

Record = Callable[[str, str, object], None]
"""Is told the name of a part, its kind, and what it has given."""

FUNCTION = "function"
"""The kind of functions, where modules have the name of their class."""

FUNCTIONS = {
    function: function.__name__.strip("_")
    for function in (
        F.relu, torch.relu, Tensor.relu, Tensor.relu_, F.leaky_relu, F.prelu, F.relu6, F.hardtanh,
        torch.clamp, Tensor.clamp, F.elu, F.gelu, F.silu, torch.sigmoid, torch.tanh, F.softmax,
        F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.pad, F.batch_norm,
        F.conv1d, F.conv2d, F.conv_transpose2d, F.linear,
    )
}  # fmt: skip
"""Functions that are stages where a forward that is not PyTorch's own calls them."""


class StopRun(Exception):
    """Raised by what records, to end the run of a network."""


@contextmanager
def recording(module: nn.Module, record: Record) -> Iterator[None]:
    """While it lasts, each part of a network that has run reports its name, kind and output.

    Parts are submodules by their names, the network itself being ``""`` and the last one, and the
    functions of `FUNCTIONS` by the name of the module that calls them and their own. `StopRun`
    ends it.
    """
    running: list[tuple[str, nn.Module]] = []

    def begin(name: str, part: nn.Module) -> None:
        running.append((name, part))

    def end(name: str, part: nn.Module, output: object) -> None:
        running.pop()
        record(name, type_before_parametrizations(part).__name__, output)

    handles = []
    for name, part in module.named_modules():
        if "parametrizations" in name.split("."):
            continue  # it gives a weight
        handles += [
            part.register_forward_pre_hook(lambda _, __, name=name, part=part: begin(name, part)),
            part.register_forward_hook(lambda part, _, out, name=name: end(name, part, out)),
        ]
    try:
        with suppress(StopRun), _Functions(running, record):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Functions(TorchFunctionMode):
    """Reports what functions give that the running module calls.

    Here, and not where it is used: a class lives until the garbage collector comes, with all that
    its methods close over, such as the Jacobians of a stage.
    """

    def __init__(self, running: Sequence[tuple[str, nn.Module]], record: Record) -> None:
        super().__init__()
        self._running, self._record = running, record

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        output = func(*args, **(kwargs or {}))
        if func in FUNCTIONS and self._running and not _is_torchs(self._running[-1][1]):
            place = self._running[-1][0]
            name = f"{place}.{FUNCTIONS[func]}" if place else FUNCTIONS[func]
            self._record(name, FUNCTION, output)
        return output


def _is_torchs(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.nn.")
