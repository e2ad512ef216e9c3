"""When steps are recorded and replayed, with a recorder that stands in for that of a GPU.

What a real one does is tested in `test_gpu`.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from iresflow.horizon import Notes
from iresflow.training.loop import replay
from iresflow.training.loop.batches import Batch
from iresflow.training.loop.replay import MARGIN, SHORTEN, Replay

MOST = 20


class Step:
    """The gradient of a sum of products, with a loop of some length."""

    def __init__(self, notes):
        self.module, self.notes = nn.Linear(3, 1, bias=False), notes
        self.module.register_buffer("written", torch.zeros(()))
        self.asked, self.length, self.fault = 0, 4, None

    def __call__(self, batch):
        """As the host asks for it; notes where the device would find and leave all."""
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        reach = min(self.notes.next_horizon() or MOST, MOST)
        self.module.weight.grad = torch.zeros(1, 3)
        self.left = (batch, reach, self.module.weight.grad, torch.zeros(1), torch.zeros(2))
        self.notes.add(self.left[-1])
        self.work(*self.left)
        return self.left[-2]

    def work(self, batch, reach, gradient, numbers, note):
        """What the device does."""
        gradient.copy_(batch.values.mean(0))
        numbers.fill_(batch.values.sum())
        note.copy_(torch.tensor([float(reach < self.length), float(min(reach, self.length))]))


class Recorder:
    """In the place of a CUDA graph."""

    def register_generator_state(self, generator):
        assert isinstance(generator, torch.Generator)

    def replay(self):
        self.step.work(*self.left)


@pytest.fixture
def made(monkeypatch):
    notes = Notes()
    step = Step(notes)

    @contextmanager
    def recording(recorder, capture_error_mode):
        yield
        recorder.step, recorder.left = step, step.left

    cuda = replay.torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(cuda, "graph", recording)
    monkeypatch.setattr(cuda, "default_generators", {None: torch.Generator()}, raising=False)
    monkeypatch.setattr(replay, "_states", lambda streams: [None for _ in streams])
    monkeypatch.setattr(replay, "_restore", lambda streams, states: None)
    return step, Replay(step, [step.module], [torch.Generator()], notes)


def take(step, compute, samples=5):
    """How often the host asked for a step, whose gradient is right in any case."""
    batch, asked = Batch(torch.randn(samples, 3)), step.asked
    with step.notes.collecting():
        while True:
            step.module.zero_grad()
            numbers = compute(batch)
            if step.notes.all_ended():
                break
    torch.testing.assert_close(step.module.weight.grad[0], batch.values.mean(0))
    torch.testing.assert_close(numbers[0], batch.values.sum())
    return step.asked - asked


def test_steps_that_are_alike_are_asked_for_once(made):
    step, compute = made
    assert [take(step, compute) for _ in range(7)] == [1, 1, 1, 0, 0, 0, 0]
    assert compute.recorded == 1


def test_what_is_kept_of_a_buffer_is_known_to_be_old(made):
    step, compute = made
    while not compute.recorded:
        take(step, compute)
    before = step.module.written._version
    take(step, compute)
    assert step.module.written._version > before


def test_other_shapes_are_recorded_anew(made):
    step, compute = made
    for _ in range(6):
        take(step, compute)
    assert take(step, compute, samples=4) == 1
    assert [take(step, compute, samples=4) for _ in range(3)] == [1, 0, 0]
    assert compute.recorded == 2


def test_parameters_that_lie_elsewhere_are_recorded_anew(made):
    step, compute = made
    for _ in range(6):
        take(step, compute)
    step.module.weight.data = step.module.weight.data.clone()
    assert [take(step, compute) for _ in range(3)] == [1, 1, 0]


def test_longer_loops_within_the_margin_are_replayed_and_others_computed_again(made):
    step, compute = made
    for _ in range(6):
        take(step, compute)
    step.length += MARGIN
    assert [take(step, compute) for _ in range(3)] == [0, 0, 0]
    step.length += MARGIN + 1
    assert take(step, compute) == 1  # replayed in vain, then computed with all terms
    # The counts of what was computed again are known one step later.
    assert [take(step, compute) for _ in range(4)] == [1, 1, 0, 0]
    assert compute.recorded == 2


def test_a_recording_gives_way_to_a_shorter_one(made):
    step, compute = made
    for _ in range(6):
        take(step, compute)
    step.length = 1
    asked = [take(step, compute) for _ in range(SHORTEN + 10)]
    assert sum(asked) == 1 and compute.recorded == 2
    assert compute.recording.horizons == (1 + MARGIN,)


def test_steps_that_cant_be_recorded_go_on_as_they_were(made, caplog, monkeypatch):
    step, compute = made

    @contextmanager
    def failing(recorder, capture_error_mode):
        yield
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(replay.torch.cuda, "graph", failing)
    assert [take(step, compute) for _ in range(7)] == [1, 1, 2, 1, 1, 1, 1]
    assert caplog.text.count("operation not permitted") == 1 and compute.recorded == 0


def test_errors_of_an_objective_are_its_own(made):
    step, compute = made
    step.fault = ValueError("a loss is a scalar")
    with pytest.raises(ValueError, match="scalar"):
        take(step, compute)
