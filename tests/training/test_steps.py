"""What a step reads, what it keeps out of the weights, and batches that are computed in parts."""

import copy
import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import worker
from helpers import pairs
from torch.utils._python_dispatch import TorchDispatchMode

from iresflow import NonFiniteError, NotInitializedError
from iresflow.bijections import ActNorm
from iresflow.data import Split, load_dataset
from iresflow.data.images.augment import Flip, Shift
from iresflow.switches import read
from iresflow.training.checkpoint import load_training
from iresflow.training.config import TrainingConfig
from iresflow.training.loop import batches as batches_module
from iresflow.training.loop.batches import Batches, Share
from iresflow.training.loop.guard import Deferred, Immediate, guard_for
from iresflow.training.loop.optimizers import OPTIMIZERS
from iresflow.training.loop.processes import Alone
from iresflow.training.loop.step import PRECISIONS, StepFunction, own_shares
from iresflow.training.objectives.likelihood import MaximumLikelihood

CPU = torch.device("cpu")

WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select"}
"""Operations whose result, or its shape, the host must wait for."""


class Waits(TorchDispatchMode):
    """Collects the operations that a host would wait for."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name == "index" and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if (name in WAITING or boolean) and not self.paused:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def new_trainer(tmp_path, guard=None, objective=None, training=None, **log_det):
    """A trainer of `worker`, whose options of the log-determinant may be others."""
    return worker.new_trainer(
        tmp_path, objective=objective, guard=guard, log_det=log_det, **(training or {})
    )


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than the steps."""
    monkeypatch.setattr(MaximumLikelihood, "illustrate", lambda *_: None)


# What a step waits for.


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_waits_for_nothing(tmp_path, float32, monkeypatch, accumulate):
    trainer = new_trainer(
        tmp_path, Deferred(CPU), tol=0, training={"accumulate": accumulate, "steps": 5}
    )
    waits, step, counts = Waits(), StepFunction.take, []

    def watched(self, *arguments):
        before = len(waits.names)
        with waits:
            result = step(self, *arguments)
        counts.append(waits.names[before:])
        return result

    update = trainer.optimizer.step

    def unwatched():
        waits.paused = True  # its counters of steps are tensors of the host
        update()
        waits.paused = False

    trainer.optimizer.step = unwatched
    monkeypatch.setattr(StepFunction, "take", watched)
    trainer.train()
    assert counts[1:] == [[]] * 4
    assert len(counts[0]) <= 1  # a constant of the logit, the first time in a process


def no_votes():
    return 0.0, 0.0


def test_a_tolerance_waits_once_a_term(tmp_path, float32):
    """A control, and the only wait that an option brings."""
    trainer = new_trainer(tmp_path, Deferred(CPU), training={"steps": 1}, name="power-series")
    trainer._start_alike()
    trainer.model.train()
    with Waits() as waits:
        list(trainer.steps.take(0, next(trainer.batches.from_step(0)), 0.0, no_votes))
    assert 3 <= len(waits.names) <= 2 + 2 * 12


def test_an_actnorm_reads_its_state_again_where_it_was_written():
    layer, x = ActNorm(3).eval(), torch.randn(8, 3)
    fresh = copy.deepcopy(layer.state_dict())
    layer.initialize(x)
    layer(x)
    with Waits() as waits:
        layer(x)
        layer.inverse(x)
    assert not [name for name in waits.names if name in ("is_nonzero", "nonzero")]
    layer.load_state_dict(fresh)
    with pytest.raises(NotInitializedError):
        layer(x)
    trained = ActNorm(3).eval()
    trained.load_state_dict({**fresh, "initialized": torch.tensor(True)})
    trained(x)
    copied = copy.deepcopy(trained)
    copied.initialized = torch.tensor(False)
    with pytest.raises(NotInitializedError):
        copied(x)
    with torch.inference_mode():
        made = ActNorm(3).eval()
        with pytest.raises(NotInitializedError):
            made(x)
        made.initialize(x)
        made(x)


# What a step keeps out of the weights.


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Of each optimiser the options of ten steps, and the parameters after five that are good."""

    @cache
    def of(optimizer):
        settings = {"steps": 10, "validate_every": 3, "log_every": 100, "optimizer": optimizer}
        settings |= {"weight_decay": 0.01, "learning_rate": 1e-3}
        run = tmp_path_factory.mktemp("good")
        trainer = new_trainer(run, training={**settings, "steps": 5})
        trainer.train()
        return settings, list(trainer.model.parameters())

    return of


@pytest.mark.parametrize(
    ("guard", "where", "optimizer"),
    pairs([Immediate, partial(Deferred, CPU)], ["loss", "gradient"], list(OPTIMIZERS)),
)
def test_a_bad_step_changes_no_weight_and_is_named(
    tmp_path, float32, good, guard, where, optimizer
):
    settings, expected = good(optimizer)

    def spoiled(terms):
        if trainer.progress.step != 5:
            return terms
        if where == "loss":
            return replace(terms, loss=terms.loss * math.inf)
        terms.loss.register_hook(lambda gradient: gradient * math.nan)
        return terms

    trainer = new_trainer(tmp_path, guard(), worker.Acting(spoiled), training=settings)
    what = "the loss is inf" if where == "loss" else "the gradient's norm is nan"
    with pytest.raises(NonFiniteError, match=rf"{what} at step 5; the last good .*last\.pt"):
        trainer.train()
    for a, b in zip(trainer.model.parameters(), expected, strict=True):
        assert torch.equal(a, b)
    for model in (trainer.model, trainer.average.model):
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    state, progress = load_training(trainer.run.checkpoint("last"))
    assert progress.step == 3
    assert all(bool(t.isfinite().all()) for t in state["average"].values())
    assert "NaN" not in trainer.run.metrics_file.read_text()


def test_a_deferred_guard_changes_nothing_of_a_good_run(tmp_path, float32):
    at_once = new_trainer(tmp_path, Immediate())
    later = new_trainer(tmp_path, Deferred(CPU))
    for trainer in (at_once, later):
        trainer.train()
    for key, value in at_once.model.state_dict().items():
        assert torch.equal(value, later.model.state_dict()[key]), key
    lines = [t.run.metrics_file.read_text().split('"train/steps_per') for t in (at_once, later)]
    assert lines[0][0] == lines[1][0]


def test_a_time_limit_ends_a_deferred_run_with_a_validation(tmp_path, float32):
    trainer = new_trainer(
        tmp_path, Deferred(CPU), training={"minutes": 1e-9, "steps": 50, "validate_every": 50}
    )
    trainer.train()
    assert 1 <= trainer.progress.step <= 2
    assert load_training(trainer.run.checkpoint("last"))[1].step == trainer.progress.step


def test_guards_are_chosen_by_device():
    assert isinstance(guard_for(CPU), Immediate)
    assert not Immediate().settle() and not Deferred(CPU).settle()


# Batches in parts.


def test_gradients_of_parts_add_up_to_that_of_the_batch(tmp_path):
    settings = {"clip_norm": None}
    trainers = [new_trainer(tmp_path, training={"accumulate": n, **settings}) for n in (1, 4)]
    gradients, numbers, norms = [], [], []
    for trainer in trainers:
        trainer._start_alike()
        trainer.model.train()
        numbers.append(trainer.steps.take(0, next(trainer.batches.from_step(3)), 0.0, no_votes)[0])
        gradients.append([p.grad for p in trainer.model.parameters()])
        norms.append({k: v for k, v in trainer.model.named_buffers() if k.endswith("sigma")})
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(numbers[0], numbers[1], rtol=1e-12, atol=0)
    assert all(torch.equal(norms[0][key], norms[1][key]) for key in norms[0])


@pytest.mark.parametrize("name", ["power-series", "random-series", "krylov", "exact"])
def test_training_in_parts_gives_the_weights_of_whole_batches(tmp_path, name):
    settings = {"name": name, "terms": 6, "tol": 0.0}
    whole, parts = (
        new_trainer(tmp_path, training={"accumulate": n, "steps": 4}, **settings) for n in (1, 3)
    )
    for trainer in (whole, parts):
        trainer.train()
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(
            parts.model.state_dict()[key], value, rtol=1e-8, atol=1e-10, msg=key
        )


def test_shares_are_even_and_cover_the_batch():
    shares = Share.split(10, 4)
    assert [share.size for share in shares] == [2, 3, 2, 3]
    assert [i for share in shares for i in range(10)[share.rows]] == list(range(10))
    assert sum(share.weight for share in shares) == pytest.approx(1, abs=1e-15)
    generator = torch.Generator()
    assert Share.split(10, 1)[0].stream(generator) is generator
    assert shares[1].stream(generator).first == 2
    with pytest.raises(ValueError, match="batch of 3 can't be split in 4: training.batch_size"):
        Share.split(3, 4)


def test_processes_own_consecutive_shares():
    class Third(Alone):
        rank, count = 2, 3

    assert own_shares(12, 2, Third()) == Share.split(12, 6)[4:]
    with pytest.raises(ValueError, match="batch of 5"):
        own_shares(5, 2, Third())
    with pytest.raises(ValueError, match="accumulate must be above 0"):
        TrainingConfig(accumulate=0)


def test_rows_of_batches_are_rows():
    digits = load_dataset("digits").train
    batches = Batches(digits, size=10, seed=1, device=CPU, augment=(Flip(), Shift(2)))
    whole, part = batches.from_step(7), batches.from_step(7, slice(3, 8))
    for _ in range(3):
        all_of, some = next(whole), next(part)
        assert torch.equal(some.values, all_of.values[3:8])
        assert torch.equal(some.labels, all_of.labels[3:8])
        assert some.values.dtype == torch.uint8


def test_data_stays_on_the_host_where_a_gpu_is_too_small(monkeypatch):
    split = Split(torch.zeros(100, 1, 8, 8, dtype=torch.uint8))
    moved, size = [], split.values.nbytes

    def to(self, device):
        moved.append(device)
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    for free, expected in ((4 * size, 1), (4 * size - 4, 0)):
        monkeypatch.setattr(
            batches_module.torch.cuda, "mem_get_info", lambda device, free=free: (free, 0)
        )
        moved.clear()
        batches_module._placed(split, torch.device("cuda"))
        assert len(moved) == expected


# Precision.


def test_precision_holds_in_steps_and_is_put_back():
    keys = [("cuda", "conv"), ("cuda", "matmul")]
    before = [read(key) for key in keys]
    for name, precision in (("float32", "ieee"), ("tf32", "tf32")):
        with PRECISIONS[name]():
            assert {read(key) for key in keys} == {precision}
        assert [read(key) for key in keys] == before


def test_evaluation_and_reconstruction_never_use_reduced_precision(tmp_path, float32, monkeypatch):
    trainer = new_trainer(tmp_path, training={"precision": "tf32", "steps": 2})
    seen = []
    original = type(trainer.model).forward

    def watched(self, *arguments, **settings):
        seen.append((self.training, read(("cuda", "matmul"))))
        return original(self, *arguments, **settings)

    monkeypatch.setattr(type(trainer.model), "forward", watched)
    trainer.train()
    assert {precision for training, precision in seen if training} == {"tf32"}
    assert {precision for training, precision in seen if not training} == {"ieee"}
