"""The seeded cut of built-in sets, whose samples are always the same ones."""

import torch
from torch import Tensor

from iresflow.data.base import Split
from iresflow.data.cuts import ByShuffle, Part, Rows, permutation

__all__ = ["hold_out", "split_in_three"]


def hold_out(
    values: Tensor, labels: Tensor | None, *, count: int, seed: int
) -> tuple[Split, Split]:
    """Takes ``count`` random samples away from the others.

    Both parts come in the order of the permutation, so that every prefix of either is a random
    sample too. PyTorch's global random state is neither read nor changed.

    Arguments:
        values: All samples, shape ``(N, *event)``.
        labels: Their classes, shape ``(N,)``, or ``None``.
        count: Size of the second part, from 1 to N - 1.
        seed: Chooses the permutation.

    Returns:
        The remaining ``N - count`` samples, and the ``count`` samples held out.

    Raises:
        ValueError: If either part would be empty.
    """
    if not 1 <= count < len(values):
        raise ValueError(
            f"cannot hold {count} out of {len(values)} samples; allowed is 1 to {len(values) - 1}"
        )
    order = permutation(len(values), seed)
    return _part(values, labels, order[count:]), _part(values, labels, order[:count])


def split_in_three(
    values: Tensor, labels: Tensor | None, *, validation: Part, test: Part, seed: int
) -> tuple[Split, Split, Split]:
    """Cuts samples into a training, a validation and a test part by a random permutation.

    Arguments:
        values: All samples, shape ``(N, *event)``, N at least 3.
        labels: Their classes, shape ``(N,)``, or ``None``.
        validation: Count or fraction of N, as in :func:`part_size`.
        test: Likewise.
        seed: Chooses the permutations.

    Raises:
        ValueError: If no sample would be left to train on.
    """
    parts = ByShuffle(seed).cut([b""] * len(values), validation=validation, test=test)
    train, validated, tested = (
        _part(values, labels, rows) for rows in (parts.train, parts.validation, parts.test)
    )
    return train, validated, tested


def _part(values: Tensor, labels: Tensor | None, rows: Rows) -> Split:
    index = torch.from_numpy(rows)
    return Split(values[index], None if labels is None else labels[index])
