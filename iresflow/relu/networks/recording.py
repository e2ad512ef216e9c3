"""What the submodules of a network give while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch import nn

__all__ = ["StopRun", "recording"]


class StopRun(Exception):
    """Raised by what records, to end the run of a network."""


@contextmanager
def recording(
    module: nn.Module, record: Callable[[str, nn.Module, object], None]
) -> Iterator[None]:
    """While it lasts, each call of a submodule reports its name, itself and its output.

    The module itself, by the name ``""``, is the last one of a call. `StopRun` ends it.
    """
    handles = [
        part.register_forward_hook(
            lambda called, _, output, name=name: record(name, called, output)
        )
        for name, part in module.named_modules()
    ]
    try:
        with suppress(StopRun):
            yield
    finally:
        for handle in handles:
            handle.remove()
