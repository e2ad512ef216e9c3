"""The gradient of a step, recorded once and done again by a GPU alone, as a CUDA graph.

A step of a small model is thousands of operations, and the host takes longer to ask for one than a
GPU to do it. As long as steps do the same operations on tensors of the same shapes, one recording
serves them all, and the host asks once.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from iresflow.horizon import Notes
from iresflow.tensors import mark_written
from iresflow.training.loop.batches import Batch

__all__ = ["Gradient", "Replay", "replays"]

LIKE_BEFORE = 2
"""Steps alike before the first one is recorded."""

MARGIN = 1
"""How much further than in the last steps a recorded loop goes: the longest of them grow."""

SHORTEN = 512
"""Steps after which a recording gives way to one whose loops are shorter."""

logger = logging.getLogger(__name__)

Layout = tuple[object, ...]

Horizons = tuple[int | None, ...]

Gradient = Callable[[Batch], Tensor]
"""Leaves the gradient of a batch in the parameters, and returns numbers of it."""


def replays(device: torch.device) -> bool:
    """Whether what a device does can be recorded."""
    return device.type == "cuda" and torch.cuda.is_available()


@final
@dataclass(frozen=True)
class _Recording:
    """What a step did, and where it finds and leaves its tensors.

    Attributes:
        graph: The operations.
        layout: What the step must have in common with others.
        horizons: How far each loop goes.
        batch: Where the samples are looked for.
        numbers, gradients, notes: What is left.
    """

    graph: torch.cuda.CUDAGraph
    layout: Layout
    horizons: Horizons
    batch: Batch
    numbers: Tensor
    gradients: list[Tensor | None]
    notes: list[Tensor]

    def spare(self, horizons: Horizons) -> list[int]:
        """How much further than to a horizon each loop goes."""
        pairs = zip(horizons, self.horizons, strict=True)
        return [(there or 0) - (here or 0) for here, there in pairs]


@final
class Replay:
    """A gradient that is recorded where steps have become alike. It is a `Gradient`.

    Arguments:
        gradient: What is recorded. It may draw from the generators alone, reads nothing from the
            device, and leaves what it changes in the modules' buffers.
        modules: Whose parameters and buffers it uses.
        generators: On the device; to be seeded before each call.
        notes: Those of the step.
    """

    def __init__(
        self,
        gradient: Gradient,
        modules: Sequence[nn.Module],
        generators: Sequence[torch.Generator],
        notes: Notes,
    ) -> None:
        self.gradient, self.generators, self.notes = gradient, generators, notes
        self.parameters = [p for module in modules for p in module.parameters()]
        self.buffers = [b for module in modules for b in module.buffers()]
        self.recording: _Recording | None = None
        self.recorded = 0
        """How often."""
        self._possible, self._alike, self._replayed = True, 0, 0
        self._last: Layout | None = None

    def __call__(self, batch: Batch) -> Tensor:
        layout, horizons = self._layout(batch), self.notes.horizons
        if not self._serves(layout, horizons):
            alike = layout == self._last and None not in horizons
            self._alike = self._alike + 1 if alike else 0
            self._last = layout
            wanted = alike and (self.recorded > 0 or self._alike >= LIKE_BEFORE)
            if not (wanted and self._possible and self._record(batch, layout)):
                return self.gradient(batch)
        return self._again(batch)

    def _serves(self, layout: Layout, horizons: Horizons) -> bool:
        """Whether the recorded operations are those of a step, or go further in vain."""
        recording = self.recording
        if recording is None or layout != recording.layout or None in horizons:
            return False
        spare = recording.spare(horizons)
        if self._replayed >= SHORTEN and any(steps > MARGIN for steps in spare):
            return False
        return all(steps >= 0 for steps in spare)

    def _layout(self, batch: Batch) -> Layout:
        """What the recording relies on: shapes, and where all that it uses lies."""
        samples = [t for t in (batch.values, batch.labels) if t is not None]
        shapes = tuple((t.shape, t.dtype) for t in samples)
        return (shapes, *(t.data_ptr() for t in (*self.parameters, *self.buffers)))

    def _record(self, batch: Batch, layout: Layout) -> bool:
        """Records a step without doing it; returns False where that is not possible."""
        self.recording = None  # its memory serves the next
        labels = batch.labels
        fixed = Batch(batch.values.clone(), None if labels is None else labels.clone())
        graph = torch.cuda.CUDAGraph()
        streams = [*self.generators, torch.cuda.default_generators[batch.values.device.index]]
        before = _states(streams)
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Another thread may make batches ready meanwhile.
        try:
            with (
                self.notes.further(MARGIN),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                numbers = self.gradient(fixed)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            logger.warning("steps can't be recorded, and take longer: %s", reason)
            self._possible, self.notes.left = False, []
            _restore(streams, before)
            return False
        finally:
            gc.collect()  # what the host noted for the gradient belongs to no later step
        gradients = [p.grad for p in self.parameters]
        horizons = tuple(known and known + MARGIN for known in self.notes.horizons)
        notes = self.notes.left
        self.recording = _Recording(graph, layout, horizons, fixed, numbers, gradients, notes)
        self.recorded, self._replayed = self.recorded + 1, 0
        return True

    def _again(self, batch: Batch) -> Tensor:
        assert (recording := self.recording) is not None
        recording.batch.values.copy_(batch.values)
        if batch.labels is not None and recording.batch.labels is not None:
            recording.batch.labels.copy_(batch.labels)
        recording.graph.replay()
        self._replayed += 1
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        self.notes.left = recording.notes
        # Who keeps what was made of a buffer looks at its version. Those that are not of floats
        # are not written.
        mark_written(b for b in self.buffers if b.is_floating_point())
        return recording.numbers


def _states(streams: Sequence[torch.Generator]) -> list[torch.Generator]:
    """Where random streams are."""
    return [stream.clone_state() for stream in streams]


def _restore(streams: Sequence[torch.Generator], states: Sequence[torch.Generator]) -> None:
    """Sets them there, also those that believe that they are still recorded."""
    for stream, state in zip(streams, states, strict=True):
        stream.graphsafe_set_state(state)
