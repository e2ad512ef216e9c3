"""Which samples are trained, validated and tested on: the rules.

A rule sees *keys*, one for each sample: bytes that tell it apart from all others, such as its path
below the directory, or the content of its row. It answers with the numbers of the samples.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

__all__ = [
    "CUT_NAMES",
    "ByHash",
    "ByShuffle",
    "ByTime",
    "Cut",
    "Part",
    "Parts",
    "arrange",
    "cut_named",
    "in_fair_order",
    "part_size",
    "permutation",
]

Part = int | float
"""How much to hold out: a count, or a fraction between 0.0 and 1.0."""

Rows = np.ndarray
"""Numbers of samples, int64 ``(N,)``."""

HELD_OUT = 0.1
"""What is held out for each of validation and test where nothing is asked for."""


def part_size(part: Part, total: int, *, name: str) -> int:
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


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """The samples of each part by their numbers, in the order that the splits shall have."""

    train: Rows
    validation: Rows
    test: Rows


class Cut(ABC):
    """A rule that cuts samples into a training, a validation and a test part."""

    takes_given = True
    """Whether data that come with parts of their own keep them."""

    def cut(self, keys: Sequence[bytes], *, validation: Part | None, test: Part | None) -> Parts:
        """Cuts samples into three parts, each in an order of which any prefix is a fair sample.

        Arguments:
            keys: What tells each sample apart, N of them, in the order of the data.
            validation: How many to hold out, as a count or as a fraction of N, as in
                :func:`part_size`; ``None`` for none.
            test: Likewise.

        Raises:
            ValueError: If a part is not allowed, or no sample would be left to train on.
        """
        total = len(keys)
        sizes = [
            0 if part is None else part_size(part, total, name=name)
            for name, part in (("validation", validation), ("test", test))
        ]
        if sum(sizes) >= total:
            raise ValueError(
                f"validation={validation} and test={test} are {sizes[0]} + {sizes[1]} samples, "
                f"which leaves none of {total} to train on"
            )
        return self._cut(keys, validation, test, sizes)

    @abstractmethod
    def _cut(
        self, keys: Sequence[bytes], validation: Part | None, test: Part | None, sizes: list[int]
    ) -> Parts:
        """As `cut`; ``sizes`` are the two parts' as counts."""


@final
@dataclass(frozen=True)
class ByHash(Cut):
    """Each sample's own hash decides, so that none changes its part when others are added.

    A fraction is the probability of being held out: of N samples, about so many are, and always
    one at least. A count is met exactly, by the smallest hashes; with a count, or where one
    sample had to be held out whatever its hash, samples can change their part as the data grow.

    Arguments:
        seed: Of the validation part. The test part depends on no seed, so that results with
            different seeds are results on the same samples.
    """

    seed: int = 0

    def __str__(self) -> str:
        return "a hash of each sample"

    def _cut(
        self, keys: Sequence[bytes], validation: Part | None, test: Part | None, sizes: list[int]
    ) -> Parts:
        left, total = np.arange(len(keys)), len(keys)
        most = total - 1 - (min(1, sizes[0]) if isinstance(validation, float) else sizes[0])
        tested, left = _held(left, _places(keys, "test"), test, 1.0, most)
        share = 1.0 - (test if isinstance(test, float) else sizes[1] / total)
        places = _places(keys, f"validation {self.seed}")
        validated, left = _held(left, places, validation, share, len(left) - 1)
        return Parts(*(in_fair_order(keys, rows) for rows in (left, validated, tested)))


@final
@dataclass(frozen=True)
class ByShuffle(Cut):
    """A random permutation decides: of other data, or of more, it is another one altogether.

    The rule of version 0.1, for its runs and for data that are drawn from a seed themselves.

    Arguments:
        seed: Chooses the permutation.
    """

    seed: int = 0
    takes_given = False

    def __str__(self) -> str:
        return "a random permutation of all samples"

    def _cut(
        self, keys: Sequence[bytes], validation: Part | None, test: Part | None, sizes: list[int]
    ) -> Parts:
        order = permutation(len(keys), self.seed)
        tested, left = order[: sizes[1]], order[sizes[1] :]
        if sizes[0]:
            left = left[permutation(len(left), self.seed)]
        return Parts(left[sizes[0] :], left[: sizes[0]], tested)


@final
@dataclass(frozen=True)
class ByTime(Cut):
    """The last samples are tested on, those before them validated on, and the first trained on."""

    def __str__(self) -> str:
        return "time, the last samples being held out"

    def _cut(
        self, keys: Sequence[bytes], validation: Part | None, test: Part | None, sizes: list[int]
    ) -> Parts:
        rows, total = np.arange(len(keys)), len(keys)
        held = total - sum(sizes)
        parts = rows[:held], rows[held : total - sizes[1]], rows[total - sizes[1] :]
        return Parts(*(in_fair_order(keys, part) for part in parts))


CUT_NAMES = ("hash", "shuffle", "time")


def cut_named(name: str, seed: int) -> Cut:
    """The rule of that name.

    Raises:
        ValueError: If there is none.
    """
    rules: dict[str, Cut] = {"hash": ByHash(seed), "shuffle": ByShuffle(seed), "time": ByTime()}
    if name not in rules:
        raise ValueError(f"order={name!r}; allowed are {', '.join(CUT_NAMES)}")
    return rules[name]


def arrange(
    keys: Sequence[bytes],
    given: Mapping[str, Rows],
    cut: Cut,
    *,
    validation: Part | None,
    test: Part | None,
) -> Parts:
    """The parts that data come with, and what is missing cut from the training part.

    Arguments:
        keys: What tells each sample apart.
        given: The samples of ``train`` and perhaps of ``validation`` and ``test``; nothing for
            data without parts of their own.
        cut: The rule.
        validation: How much of what is cut to hold out; ``None`` for a tenth.
        test: Likewise.

    Raises:
        ValueError: If a part is asked for that is given, or as `Cut.cut`.
    """
    asked = {"validation": validation, "test": test}
    for name in given.keys() & asked.keys():
        if asked[name] is not None:
            raise ValueError(
                f"{name}={asked[name]}, but the data have a {name} part of their own; allowed is "
                "None"
            )
    wanted = {
        name: None if name in given else HELD_OUT if part is None else part
        for name, part in asked.items()
    }
    rows = given.get("train", np.arange(len(keys)))
    parts = cut.cut([keys[row] for row in rows], **wanted)
    held = {
        name: in_fair_order(keys, given[name]) if name in given else rows[getattr(parts, name)]
        for name in asked
    }
    return Parts(rows[parts.train], held["validation"], held["test"])


def in_fair_order(keys: Sequence[bytes], rows: Rows) -> Rows:
    """Samples in an order that only depends on their keys, and on nothing that the keys mean."""
    places = _places([keys[row] for row in rows], "order")
    return rows[np.argsort(places, kind="stable")]


def _places(keys: Sequence[bytes], salt: str) -> np.ndarray:
    """A number in [0, 1) for each key: its hash, independent between salts."""
    hashes = b"".join(hashlib.blake2b(k, digest_size=8, key=salt.encode()).digest() for k in keys)
    return np.frombuffer(hashes, dtype="<u8") / 2.0**64


def _held(
    rows: Rows, places: np.ndarray, part: Part | None, share: float, most: int
) -> tuple[Rows, Rows]:
    """The rows to hold out, and the others.

    Arguments:
        rows: Of which to hold out.
        places: Of all samples.
        part: How much, as a fraction of all samples, or as a count.
        share: Of all samples that is left in ``rows``, expected.
        most: How many may be held out.
    """
    if part is None:
        return rows[:0], rows
    order = rows[np.argsort(places[rows], kind="stable")]
    count = part
    if isinstance(part, float):
        count = min(most, max(1, int((places[rows] < part / share).sum())))
    return order[:count], np.sort(order[count:])


def permutation(count: int, seed: int) -> Rows:
    """A random order of so many samples; the global random state is neither read nor changed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu").numpy()
