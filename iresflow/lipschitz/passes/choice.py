"""The native passes where they are to be had: their folder may be missing."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from iresflow.lipschitz.passes.links import Link

if TYPE_CHECKING:
    from iresflow.lipschitz.passes.native.passes import NativePasses

__all__ = ["native_passes"]

if find_spec("iresflow.lipschitz.passes.native") is None:

    def native_passes(links: Sequence[Link], x: Tensor) -> "NativePasses | None":
        """None: there are none."""
        return None

else:
    from iresflow.lipschitz.passes.native.passes import native_passes
