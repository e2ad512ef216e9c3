"""The native passes where they are to be had: their folder may be missing."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from iresflow.lipschitz.passes.links import Link
from iresflow.solution import MixedIteration, Solution

if TYPE_CHECKING:
    from iresflow.lipschitz.passes.native.passes import NativePasses
    from iresflow.lipschitz.passes.native.solve import Rounding

__all__ = ["native_passes", "native_solution"]

if find_spec("iresflow.lipschitz.passes.native") is None:

    def native_passes(links: Sequence[Link], x: Tensor) -> "NativePasses | None":
        """None: there are none."""
        return None

    def native_solution(
        passes: "Sequence[NativePasses]",
        roundings: "Sequence[Rounding]",
        y: Tensor,
        how: MixedIteration,
    ) -> Solution | None:
        """None: there are no passes."""
        return None

else:
    from iresflow.lipschitz.passes.native.passes import native_passes
    from iresflow.lipschitz.passes.native.solve import native_solution
