"""The table that says whether a flow is provably invertible."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from iresflow.lipschitz import Bound

__all__ = ["BlockCertificate", "Certificate"]


@final
@dataclass(frozen=True)
class BlockCertificate:
    """What is certified of one residual block.

    Attributes:
        name: The block's place in the model.
        bound: Of the Lipschitz constant of its branch.
    """

    name: str
    bound: Bound

    @property
    def inverse_lipschitz(self) -> float:
        """Lipschitz bound of the block's inverse, 1 / (1 - L) (thesis, Lemma 4.6)."""
        upper = self.bound.upper
        return 1 / (1 - upper) if upper < 1 else float("inf")


@final
@dataclass(frozen=True)
class Certificate:
    """The certified Lipschitz bounds of all residual blocks, in the order of the forward map.

    It is truthy if every block's bound is below 1, and prints as a table.
    """

    blocks: tuple[BlockCertificate, ...]

    def __bool__(self) -> bool:
        return all(block.bound.upper < 1 for block in self.blocks)

    def __iter__(self) -> Iterator[BlockCertificate]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def largest(self) -> float:
        """The largest certified bound of any block; 0 for a flow without blocks."""
        return max((block.bound.upper for block in self.blocks), default=0.0)

    @property
    def inverse_lipschitz(self) -> float:
        """The product of the blocks' 1 / (1 - L): how much, at worst, all inverses amplify.

        ActNorm's scales, which belong to the flow's own Lipschitz constant, are not in it.
        """
        return math.prod(block.inverse_lipschitz for block in self.blocks)

    def __str__(self) -> str:
        width = max([len(block.name) for block in self.blocks] + [5])
        head = f"{'block':<{width}}  certified  estimate  1/(1-L)  method"
        rows = [
            f"{b.name:<{width}}  {b.bound.upper:9.6f}  {b.bound.estimate:8.6f}  "
            f"{b.inverse_lipschitz:7.2f}  {b.bound.method}"
            for b in self.blocks
        ]
        verdict = (
            f"certified: every block has Lip(g) <= {self.largest:.6f} < 1; all inverses together "
            f"amplify an error by {self.inverse_lipschitz:.3g} at most, but for ActNorm"
            if self
            else f"NOT certified: the largest bound is {self.largest:.6f}, not below 1"
        )
        return "\n".join([head, *rows, verdict])
