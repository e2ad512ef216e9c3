"""How far a loop goes on a device before the host looks whether it has ended.

A series or a Krylov process ends for each direction by a rule of its own. On a CPU a look at the
rule is free. A GPU computes behind the host, which would wait for it at each look. So there the
loop goes on to a *horizon*, where most loops of its kind have ended lately, with masks for the
directions that have: the results are those of a look at each step, and only what is computed in
vain depends on the horizon.

At the horizon the host looks, and goes on where it has to. A step of training does not look even
then: each loop leaves a note on the device, and the step reads all notes at once (`Notes`).
"""

import functools
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

__all__ = ["Horizon", "Notes"]

WINDOW = 256
"""Loops whose largest count is remembered, and then forgotten by the next as many."""

START = 8
"""The first look of a loop of which nothing is known."""


@final
class _Counts:
    """The largest of the last counts: at least `WINDOW` of them, at most twice as many."""

    def __init__(self) -> None:
        self.largest: int | None = None
        self._recent = self._number = 0

    def add(self, count: int) -> None:
        self._recent, self._number = max(self._recent, count), self._number + 1
        self.largest = max(self.largest or 0, count)
        if self._number == WINDOW:
            self.largest, self._recent, self._number = self._recent, 0, 0


@final
class Horizon:
    """Where one loop looks.

    Arguments:
        most: Steps that the loop takes at most.
        kind: What loops have in common that take about as many steps.
        closer: What those have in common besides that take nearly as many.
    """

    def __init__(self, most: int, kind: Hashable, closer: Hashable) -> None:
        self._most, self._notes = most, getattr(_THREAD, "notes", None)
        self._counts = _counts(kind), _counts((kind, closer))
        if self._notes is not None:
            known = self._notes.next_horizon() or most
        else:
            known = self._counts[1].largest or self._counts[0].largest or START
        self._reach = min(known, most)

    @staticmethod
    def on(device: torch.device, most: int, kind: Hashable, closer: Hashable) -> "Horizon | None":
        """The horizon of a loop on a device; None where a look is free."""
        return None if device.type == "cpu" else Horizon(most, kind, closer)

    def ends(self, step: int, running: Tensor, taken: Tensor) -> bool:
        """Whether the loop ends after a step: asked after each.

        Arguments:
            step: Number of steps that were taken.
            running: Which directions go on, ``(K, B)``; none of them after the last step.
            taken: How many steps each has taken, ``(K, B)``.
        """
        if step < self._reach:
            return False
        note = torch.stack([running.any().float(), taken.amax().float()])
        if self._notes is not None:
            self._notes.add(note)
            return True
        goes_on, count = note.tolist()
        if goes_on:
            self._reach = min(step + max(2, step // 2), self._most)
            return False
        for counts in self._counts:
            counts.add(int(count))
        return True


@functools.lru_cache(maxsize=1024)
def _counts(key: Hashable) -> _Counts:
    return _Counts()


@final
class Notes:
    """What the loops of a step leave on the device, and the horizons of those of the next step.

    The loops of a step are known by their order. One of which nothing is known takes all steps.
    """

    def __init__(self) -> None:
        self._counts: list[_Counts] = []
        self._notes: list[Tensor] = []
        self._late: list[Tensor] = []  # of a step that was computed again
        self._again, self._margin = False, 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Loops of this thread that are run inside leave notes here, and look at nothing."""
        before, _THREAD.notes = getattr(_THREAD, "notes", None), self
        self._notes, self._again = [], False
        try:
            yield
        finally:
            _THREAD.notes = before

    @property
    def horizons(self) -> tuple[int | None, ...]:
        """Of all loops that are known; None for one that takes all steps."""
        return tuple(counts.largest for counts in self._counts)

    @property
    def left(self) -> list[Tensor]:
        """The notes of the step that is computed."""
        return self._notes

    @left.setter
    def left(self, notes: list[Tensor]) -> None:
        self._notes = notes

    @contextmanager
    def further(self, margin: int) -> Iterator[None]:
        """Loops that are run inside go further than the last ones by some steps."""
        self._margin = margin
        try:
            yield
        finally:
            self._margin = 0

    def next_horizon(self) -> int | None:
        """Of the next loop; None where nothing is known."""
        if len(self._notes) == len(self._counts):
            self._counts.append(_Counts())
        known = self._counts[len(self._notes)].largest
        return None if known is None else known + self._margin

    def add(self, note: Tensor) -> None:
        """Of the loop whose horizon was the last one asked for."""
        self._notes.append(note)

    def all_ended(self) -> bool:
        """Whether all loops went far enough; else the step is to be computed again.

        Those that did not take all steps then. The host waits for the device once in a step, if
        there is a note: what was computed again has ended, and tells its counts with the next.
        """
        notes, self._notes = self._notes, []
        if self._again:
            self._late, self._again = notes, False
            return True
        if not notes:
            return True
        read = torch.stack([*self._late, *notes]).tolist()
        late, now = read[: len(self._late)], read[len(self._late) :]
        for i, (goes_on, count) in [*enumerate(late), *enumerate(now)]:
            if goes_on:
                self._counts[i] = _Counts()
            else:
                self._counts[i].add(int(count))
        self._late, self._again = [], any(goes_on for goes_on, _ in now)
        return not self._again


_THREAD = threading.local()
