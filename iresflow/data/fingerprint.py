"""What a data set held, in a few bytes a sample, and what has changed since."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from iresflow.data.cuts import Parts
from iresflow.errors import few

__all__ = ["PART_NAMES", "Changes", "Fingerprint", "Prints", "hashes_of", "row_keys"]

PART_NAMES = ("train", "validation", "test")


@final
@dataclass(frozen=True, eq=False)
class Prints:
    """The samples of one split, by hashes of 64 bits.

    Arguments:
        ids: What tells each sample apart, uint64 ``(N,)``: the hash of its name, or of its content
            where it has none.
        contents: The hash of each content, uint64 ``(N,)``.
        names: The N names, where they are at hand.
    """

    ids: np.ndarray
    contents: np.ndarray
    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        named = not np.array_equal(self.ids, self.contents)
        return {
            "samples": len(self.ids),
            "contents": _packed(self.contents),
            "names": _packed(self.ids) if named else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Prints":
        """What `to_dict` gave."""
        contents = _unpacked(values["contents"])
        ids = contents if values["names"] is None else _unpacked(values["names"])
        if not len(ids) == len(contents) == values["samples"]:
            raise ValueError(f"{len(ids)} ids and {len(contents)} contents are not the samples")
        return cls(ids, contents)


@final
@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The samples of each split, and how they were read.

    Arguments:
        train: Of the training split.
        validation: Likewise.
        test: Likewise.
        reading: What the values of all samples depend on, beside files and configuration.
    """

    train: Prints
    validation: Prints
    test: Prints
    reading: str = ""

    @classmethod
    def of_samples(
        cls, contents: Sequence[bytes], names: Sequence[str], parts: Parts, reading: str = ""
    ) -> "Fingerprint":
        """Of samples with contents and perhaps names, N of each, cut into parts."""
        hashed = hashes_of(contents)
        ids = hashes_of([name.encode("utf-8", "surrogateescape") for name in names])

        def take(rows: np.ndarray) -> Prints:
            if not names:
                return Prints(hashed[rows], hashed[rows])
            return Prints(ids[rows], hashed[rows], tuple(names[row] for row in rows))

        return cls(take(parts.train), take(parts.validation), take(parts.test), reading)

    @classmethod
    def of_values(cls, *splits: tuple[Tensor, Tensor | None]) -> "Fingerprint":
        """Of the values ``(N, *event)`` and labels ``(N,)`` of the three splits."""
        keys = [row_keys(*split) for split in splits]
        train, validation, test = (Prints(hashed, hashed) for hashed in map(hashes_of, keys))
        return cls(train, validation, test)

    def part(self, name: str) -> Prints:
        """The prints of ``train``, ``validation`` or ``test``."""
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        parts = {name: self.part(name).to_dict() for name in PART_NAMES}
        return {"reading": self.reading, **parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Fingerprint":
        """What `to_dict` gave.

        Raises:
            ValueError: If the values are damaged; also KeyError and TypeError.
        """
        parts = {name: Prints.from_dict(values[name]) for name in PART_NAMES}
        return cls(**parts, reading=values["reading"])

    def shared(self, one: str, other: str) -> list[str]:
        """The names in the part ``other`` of samples whose contents are in ``one`` too."""
        prints = self.part(other)
        rows = np.flatnonzero(np.isin(prints.contents, self.part(one).contents))
        return [prints.names[row] for row in rows] if prints.names else []

    def changes_to(self, now: "Fingerprint") -> "Changes":
        """What has happened to the samples from this state to another one."""
        then_of = {
            sample: (part, content)
            for part in PART_NAMES
            for sample, content in _pairs(self.part(part))
        }
        ids_now = {sample for part in PART_NAMES for sample in now.part(part).ids.tolist()}
        # A sample that has another name now is known by its content.
        lost = {
            content: (sample, part)
            for sample, (part, content) in then_of.items()
            if sample not in ids_now
        }
        changes: dict[tuple[str, str, str], list[str]] = {}
        for part in PART_NAMES:
            prints = now.part(part)
            for row, (sample, content) in enumerate(_pairs(prints)):
                before, past = then_of.get(sample, (None, None))
                if before is None and content in lost:
                    renamed, before = lost.pop(content)
                    del then_of[renamed]
                    past = content
                kind = _kind(before, part, past == content)
                if kind is not None:
                    title = prints.names[row] if prints.names else ""
                    changes.setdefault((kind, before or "", part), []).append(title)
        for sample, (part, _) in then_of.items():
            if sample not in ids_now:
                changes.setdefault(("removed", part, part), []).append("")
        reading = None if self.reading == now.reading else (self.reading, now.reading)
        return Changes(changes, reading)


def _pairs(prints: Prints) -> Iterable[tuple[int, int]]:
    return zip(prints.ids.tolist(), prints.contents.tolist(), strict=True)


def _kind(before: str | None, part: str, same: bool) -> str | None:
    """What happened to a sample that was in part ``before``, or nowhere, and is in ``part``."""
    if before is None:
        return "added"
    if before != part:
        return "moved"
    return None if same else "changed"


@final
@dataclass(frozen=True, eq=False)
class Changes:
    """What has happened to the samples of a data set.

    Arguments:
        samples: By what happened (``added``, ``removed``, ``changed``, ``moved``), the part
            before and the part after: the names of the samples, empty where they have none.
        reading: How samples were read and are read now, where these differ.
    """

    samples: Mapping[tuple[str, str, str], Sequence[str]]
    reading: tuple[str, str] | None

    def __bool__(self) -> bool:
        """Whether anything has happened."""
        return bool(self.samples) or self.reading is not None

    def touch(self, part: str) -> bool:
        """Whether a split is another than it was."""
        return self.reading is not None or any(part in key[1:] for key in self.samples)

    def moved(self, before: str, after: str) -> int:
        """Number of samples that were in one part and are in another one."""
        return len(self.samples.get(("moved", before, after), ()))

    def __str__(self) -> str:
        told = []
        if self.reading is not None:
            told.append(f"values were read as {self.reading[0]}, now as {self.reading[1]}")
        for (kind, before, after), names in self.samples.items():
            what = f"moved from {before} to {after}" if kind == "moved" else f"{kind} in {after}"
            told.append(f"{len(names)} {what}" + (f" ({few(names)})" if any(names) else ""))
        return "; ".join(told) or "nothing has changed"


def hashes_of(contents: Iterable[bytes]) -> np.ndarray:
    """A hash of 64 bits of each content, uint64 ``(N,)``."""
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(digests, dtype="<u8")


def row_keys(values: Tensor | np.ndarray, labels: Tensor | None = None) -> list[bytes]:
    """What tells rows ``(N, ...)`` apart: the content, and how many times it came before.

    The keys of rows that are equal are different ones, and those of a table to which rows are
    added stay what they were, in whatever order the rows come.
    """
    rows = torch.as_tensor(values).flatten(1).contiguous().numpy()
    seen: dict[bytes, int] = {}
    keys = []
    for number, row in enumerate(rows):
        label = b"" if labels is None else b"%d" % int(labels[number])
        content = hashlib.blake2b(row.tobytes() + label, digest_size=16).digest()
        before = seen.get(content, 0)
        seen[content] = before + 1
        keys.append(content + b"%d" % before)
    return keys


def _packed(hashes: np.ndarray) -> str:
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8")
