"""The singular values of all stages of a linearisation, in one pass.

Everything after a stage sees its matrix A only through the rows that are on. Where these are
fewer, r, than the directions that are moved, c, A is L Q with orthonormal rows in Q ``(r, c)``,
and whatever follows has the same non-zero singular values with L in the place of A. So r
directions go on from there, and those that are lost count as zeros without a tolerance.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from iresflow.relu.stability.local_map import (
    LocalMap,
    Spectrum,
    Stage,
    decomposed_values,
    roots_of_gram,
)

__all__ = ["stage_spectra"]


def stage_spectra(
    local: LocalMap, first: Spectrum | None = None
) -> Iterator[tuple[Stage, Spectrum]]:
    """The singular values of each stage: those of `LocalMap.matrices`, several times faster.

    Arguments:
        local: The linearisation, c of whose entries are moved.
        first: The spectrum of the first stage, if it is known already: it is the same everywhere.

    Yields:
        Each stage with its min(m, c) singular values, from the input on.
    """
    moved, pixels = local.directions(), True
    for number, (stage, part) in enumerate(local.parts()):
        moved = part.forward(moved)
        on = part.slopes != 0 if stage.activated else torch.ones(stage.size, dtype=torch.bool)
        if int(on.sum()) < len(moved):
            moved, pixels = _reduced(moved, on), False
        if number == 0 and first is not None:
            yield stage, first
            continue
        found = _values(moved, on, tuple(part.layer.affine.out_shape) if pixels else ())
        size = min(stage.size, len(local.columns))
        yield stage, Spectrum(np.concatenate([found, np.zeros(size - len(found))]))


def _reduced(moved: Tensor, on: Tensor) -> Tensor:
    """As many directions as units are on, with the same singular values, ``(r, m)``."""
    _, triangle = torch.linalg.qr(moved[:, on], mode="r")
    fewer = moved.new_zeros(len(triangle), moved.shape[1])
    fewer[:, on] = triangle
    return fewer


def _values(moved: Tensor, on: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The singular values of ``(c, m)``, falling, without those of entries that nothing sees."""
    gram = _gram(moved, shape)
    seen = gram.diagonal() > 0
    if not bool(seen.any()):
        return np.zeros(0)
    found = roots_of_gram(gram[seen][:, seen].numpy())
    return decomposed_values(moved[seen][:, on].mT.numpy()) if found is None else found


def _gram(moved: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inner products of the directions ``(c, m)``, in outputs of that shape.

    Of images line by line, because a line sees few pixels of the input in the first layers.
    """
    if len(shape) != 3:
        return moved @ moved.mT
    gram = moved.new_zeros(len(moved), len(moved))
    for line in moved.unflatten(1, shape).unbind(2):
        part = line.flatten(1)
        seeing = part.count_nonzero(1).nonzero()[:, 0]
        part = part[seeing]
        gram[seeing[:, None], seeing] += part @ part.mT
    return gram
