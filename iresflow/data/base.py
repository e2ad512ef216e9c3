"""What a data set is: three splits of one tensor type, and the seeded cut that makes them."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "Dataset",
    "Split",
    "hold_out",
    "part_size",
    "resolve_root",
    "split_in_three",
    "unknown_name",
]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Arguments:
        values: Images as uint8 of shape ``(N, C, H, W)``, or vectors as float32 of shape
            ``(N, D)``; at least one.
        labels: Class numbers as int64 of shape ``(N,)``, or ``None`` where there are no classes.

    Raises:
        ValueError: If a type or a shape is another, or the two lengths differ.
    """

    values: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        kind = (self.values.dtype, self.values.dim())
        if kind not in {(torch.uint8, 4), (torch.float32, 2)}:
            raise ValueError(
                f"values are {kind[0]} of shape {tuple(self.values.shape)}; allowed are images as "
                "torch.uint8 (N, C, H, W) and vectors as torch.float32 (N, D)"
            )
        if self.values.numel() == 0:
            raise ValueError(f"values of shape {tuple(self.values.shape)} are empty")
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; values of "
                f"shape {tuple(self.values.shape)} need torch.int64 ({len(self.values)},)"
            )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of the same kind, with what is needed to model and to report them.

    Arguments:
        name: The name it was loaded by.
        train: What the model is fitted to.
        validation: What decisions during training are made on.
        test: What is reported.
        levels: Number of values a pixel can take, ``0 .. levels - 1``; ``None`` for vectors.
        classes: Name of each class, in the order of the labels; empty without labels.
        columns: Name of each dimension of vectors where they are known, else empty.

    Raises:
        ValueError: If the splits differ in event shape or type, or disagree with ``levels``,
            ``classes`` or ``columns``.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    levels: int | None
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = self.train.values.dtype == torch.uint8
        if images != (self.levels is not None):
            raise ValueError(f"levels={self.levels}; images need a number and vectors None")
        if self.columns and (images or len(self.columns) != self.shape[0]):
            raise ValueError(
                f"{len(self.columns)} column names for events of shape {self.shape}; allowed is "
                "one per dimension of vectors, or none"
            )
        for part in ("train", "validation", "test"):
            self._check(part, getattr(self, part))

    def _check(self, part: str, split: Split) -> None:
        values, labels = split.values, split.labels
        if values.shape[1:] != self.shape or values.dtype != self.train.values.dtype:
            raise ValueError(
                f"{part} holds {values.dtype} events of shape {tuple(values.shape[1:])}, but "
                f"train {self.train.values.dtype} events of shape {self.shape}"
            )
        if self.levels is not None and int(values.max()) >= self.levels:
            raise ValueError(
                f"{part} has pixel value {int(values.max())}; levels={self.levels} allows 0 to "
                f"{self.levels - 1}"
            )
        if (labels is None) != (not self.classes):
            raise ValueError(
                f"{part} has {'no ' if labels is None else ''}labels, but classes are "
                f"{self.classes}"
            )
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < len(
            self.classes
        ):
            raise ValueError(
                f"{part} has labels from {int(labels.min())} to {int(labels.max())}; "
                f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape: ``(C, H, W)`` of images, ``(D,)`` of vectors."""
        return tuple(self.train.values.shape[1:])


def part_size(part: int | float, total: int, *, name: str) -> int:
    """Number of samples that ``part`` asks for.

    Arguments:
        part: A count (int, at least 1) or a fraction of ``total`` (float between 0 and 1), which
            is rounded, and up to 1 where it would be 0.
        total: Number of samples there are.
        name: What to call ``part`` in the error.

    Raises:
        ValueError: If ``part`` is neither, or asks for more than ``total``.
    """
    if isinstance(part, int) and not isinstance(part, bool) and 1 <= part <= total:
        return part
    if isinstance(part, float) and 0.0 < part < 1.0:
        return max(1, round(part * total))
    raise ValueError(
        f"{name}={part!r}; allowed is a count from 1 to {total} or a fraction between 0.0 and 1.0"
    )


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
    order = torch.randperm(
        len(values), generator=torch.Generator().manual_seed(seed), device="cpu"
    )

    def take(rows: Tensor) -> Split:
        return Split(values[rows], None if labels is None else labels[rows])

    return take(order[count:]), take(order[:count])


def split_in_three(
    values: Tensor,
    labels: Tensor | None,
    *,
    validation: int | float,
    test: int | float,
    seed: int,
) -> tuple[Split, Split, Split]:
    """Cuts samples into a training, a validation and a test part, all three by ``seed``.

    Arguments:
        values: All samples, shape ``(N, *event)``, N at least 3.
        labels: Their classes, shape ``(N,)``, or ``None``.
        validation: Count or fraction of N, as in :func:`part_size`.
        test: Likewise.
        seed: Chooses the permutations.

    Raises:
        ValueError: If no sample would be left to train on.
    """
    total = len(values)
    validating = part_size(validation, total, name="validation")
    testing = part_size(test, total, name="test")
    if validating + testing >= total:
        raise ValueError(
            f"validation={validation} and test={test} are {validating} + {testing} samples, which "
            f"leaves none of {total} to train on"
        )
    rest, tested = hold_out(values, labels, count=testing, seed=seed)
    train, validated = hold_out(rest.values, rest.labels, count=validating, seed=seed)
    return train, validated, tested


def resolve_root(root: str | Path | None) -> Path:
    """The data directory: ``root``, else the environment's ``IRESFLOW_DATA``, else ``./data``."""
    return Path(root or os.environ.get("IRESFLOW_DATA") or "data")


def unknown_name(name: str, names: tuple[str, ...]) -> ValueError:
    """The error for a name that is none of ``names``: it gives the nearest one, and all."""
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return ValueError(f"unknown data set {name!r}{hint} Known are {', '.join(names)}")
