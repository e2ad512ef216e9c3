"""Kinds of blocks by name."""

from iresflow.bijections.branch_block import BranchBlock
from iresflow.bijections.monotone import MonotoneBlock
from iresflow.bijections.residual import ResidualBlock

__all__ = ["BLOCKS", "block_named"]

BLOCKS: dict[str, type[BranchBlock]] = {"residual": ResidualBlock, "monotone": MonotoneBlock}
"""The blocks by the names that configurations use."""


def block_named(name: str) -> type[BranchBlock]:
    """One of `BLOCKS`, or a ValueError that names them all."""
    if name not in BLOCKS:
        raise ValueError(f"unknown block {name!r}; choose one of {', '.join(BLOCKS)}")
    return BLOCKS[name]
